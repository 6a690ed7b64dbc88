// Render the equations that pymdownx.arithmatex has marked, on every page that is loaded.
document$.subscribe(() => {
  document.querySelectorAll(".arithmatex").forEach((element) => {
    const source = element.textContent.trim();
    katex.render(source.slice(2, -2), element, { displayMode: source.startsWith("\\["), throwOnError: false });
  });
});
