"""Hooks of the documentation site: code spans that are public names become links to the API, and a page that would load
anything from a network fails the build."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "discrete_distill"
# In order of preference: a name that two parts hand on is linked to the first.
PARTS = (
    "process",
    "samplers",
    "models",
    "distillation.networks",
    "distillation.paths",
    "distillation.rollout",
    "distillation.rewards",
    "distillation.divergence",
    "distillation.methods",
    "training",
    "evaluation",
    "evaluation.tasks",
    "exact",
    "kernels",
    "integrations.transformers",
    "integrations.lm_eval",
)
CODE = re.compile(r"<pre.*?</pre>|<a\b.*?</a>|<h[1-6].*?</h[1-6]>|<code>([A-Za-z_]\w+)(\(\))?</code>", re.DOTALL)

LOADED = re.compile(r"<(?:script|img|link rel=.?stylesheet.?)[^>]*(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")


def public_names(part: str) -> list[str]:
    """Names in ``__all__`` of a part of the package, or its public classes and functions where it has none."""
    path = PACKAGE / part.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return [node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_"]


def identifiers() -> dict[str, str]:
    """The identifier in the API reference of every public name."""
    found: dict[str, str] = {}
    for part in PARTS:
        for name in public_names(part):
            found.setdefault(name, f"discrete_distill.{part}.{name}")
    return found


IDENTIFIERS = identifiers()


def on_page_content(html: str, **_: Any) -> str:
    """Link code spans that are a public name, outside of code blocks, headings and links."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        # A lower-case word that is no identifier by its form, such as `uniform`, is rather an option's value.
        if name not in IDENTIFIERS or (name.islower() and "_" not in name):
            return match[0]
        return f'<autoref identifier="{IDENTIFIERS[name]}" optional>{match[0]}</autoref>'

    return CODE.sub(link, html)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page whose scripts, styles or pictures are on another server.

    Raises:
        ValueError: with the page and the address.
    """
    found = LOADED.search(output)
    if found:
        raise ValueError(f"{page.file.src_uri} loads {found[1]} from a network; put a copy under docs/assets")
    return output
