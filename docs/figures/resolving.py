"""Draw how text of the bundled teacher resolves in 64 steps and in 8, as an animated SVG. Writes ``resolving.svg``."""

from __future__ import annotations

import html
from pathlib import Path

import torch
from torch import Tensor

from discrete_distill import AncestralSampler, MaskedDiffusion
from discrete_distill.models import DiT
from discrete_distill.recipes.common.assets import asset
from discrete_distill.recipes.common.printing import printable
from discrete_distill.recipes.common.tokenizer import TextTokenizer

SECONDS_PER_STEP, PAUSE = 0.125, 4.0
COLUMNS, LINE, CHARACTER, MARGIN = 62, 19, 7.7, 16
STEPS = (64, 8)


def history(num_steps: int, seed: int = 5) -> tuple[list[str], list[int]]:
    """Text of each token of one sample, and the number of the step that revealed it, counted from 1."""
    tokenizer = TextTokenizer.load(asset("tokenizer.json"))
    teacher = DiT.from_pretrained(asset("teacher")).eval()
    sampler = AncestralSampler(MaskedDiffusion(tokenizer.mask_token_id), num_steps=num_steps, temperature=0.9)
    out = sampler(teacher, (1, 128), generator=torch.Generator().manual_seed(seed), return_history=True)
    states: list[Tensor] = out.history or []
    masked = torch.stack([state[0] == tokenizer.mask_token_id for state in states])
    texts = [printable(tokenizer.decode([token])).replace("\n", " ") for token in out.sequences[0].tolist()]
    return texts, masked.sum(0).tolist()


def panel(num_steps: int, left: float, cycle: float) -> tuple[list[str], list[str], int]:
    """Elements, keyframes and height of one panel.

    Args:
        num_steps: of the sampler.
        left: of the panel, pixels.
        cycle: seconds until the animation starts again.
    """
    texts, steps = history(num_steps)
    elements = [f'<text x="{left}" y="{MARGIN + 4}" class="title">{num_steps} steps</text>']
    column, row = 0, 1
    for text, step in zip(texts, steps, strict=True):
        if column + len(text) > COLUMNS:
            column, row = 0, row + 1
            text = text.lstrip()
        x, y = left + column * CHARACTER, MARGIN + 8 + row * LINE
        place = f'x="{x:.1f}" y="{y}" textLength="{len(text) * CHARACTER:.1f}"'
        elements.append(f'<text {place} class="m a{num_steps}-{step}">{"·" * len(text)}</text>')
        elements.append(f'<text {place} class="t b{num_steps}-{step}">{html.escape(text)}</text>')
        column += len(text)
    frames = []
    for step in sorted(set(steps)):
        share = 100 * step * SECONDS_PER_STEP / cycle
        for letter, before, after in (("a", 1, 0), ("b", 0, 1)):
            name = f"{letter}{num_steps}-{step}"
            frames.append(
                f"@keyframes {name} {{ 0%, {share:.2f}% {{ opacity: {before} }} {share + 0.01:.2f}%, 100% "
                f"{{ opacity: {after} }} }} .{name} {{ animation: {name} {cycle}s infinite }}"
            )
    return elements, frames, MARGIN + 8 + (row + 1) * LINE


def main() -> None:
    """Write the figure. Where animations are off, it shows the finished texts."""
    cycle = STEPS[0] * SECONDS_PER_STEP + PAUSE
    width = MARGIN * 3 + 2 * COLUMNS * CHARACTER
    lefts = (MARGIN, 2 * MARGIN + COLUMNS * CHARACTER)
    panels = [panel(num_steps, left, cycle) for num_steps, left in zip(STEPS, lefts, strict=True)]
    height = max(each[2] for each in panels)
    style = [
        "text { font: 12.8px 'DejaVu Sans Mono', Menlo, Consolas, monospace; white-space: pre }",
        ".title { font-weight: bold; fill: #3f51b5 } .t { fill: #1a1a1a } .m { fill: #9fa8da; opacity: 0 }",
        *(frame for each in panels for frame in each[1]),
        "@media (prefers-reduced-motion: reduce) { .t { animation: none } .m { animation: none } }",
    ]
    body = [element for each in panels for element in each[0]]
    Path(__file__).with_name("resolving.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">\n'
        "<title>A sample of 128 tokens resolving in 64 and in 8 steps</title>\n<style>\n"
        + "\n".join(style)
        + '\n</style>\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join(body)
        + "\n</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
