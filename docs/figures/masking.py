"""Draw how masking proceeds: one sentence at five times, and ``alpha(t)`` of the schedules. Writes ``masking.svg``."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

from discrete_distill import CosineSchedule, GeometricSchedule, LinearSchedule, MaskedDiffusion, PolynomialSchedule

SENTENCE = ["the", "state", "of", "the", "union", "is", "the", "state", "of", "its", "people"]
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
MASK = len(SENTENCE)


def noised(seed: int = 4) -> list[list[str]]:
    """The words of the sentence at each time, masks as ``""``. One uniform number a word decides at all times."""
    process = MaskedDiffusion(mask_token_id=MASK, schedule=LinearSchedule())
    x_0 = torch.arange(MASK)[None]
    rows = [process.corrupt(x_0, torch.tensor([t]), generator=torch.Generator().manual_seed(seed)) for t in TIMES]
    return [["" if token == MASK else SENTENCE[token] for token in row[0].tolist()] for row in rows]


def main() -> None:
    """Write the figure."""
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "masking", "font.size": 9, "svg.fonttype": "path"})
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.9), width_ratios=(2.6, 1))
    for row, (t, words) in enumerate(zip(TIMES, noised(), strict=True)):
        left.text(-0.9, -row, f"t = {t:g}", va="center", ha="right")
        for column, word in enumerate(words):
            color = "#e8eaf6" if word else "#3f51b5"
            left.add_patch(plt.Rectangle((column - 0.46, -row - 0.34), 0.92, 0.68, color=color))
            left.text(column, -row, word, va="center", ha="center")
    left.set(xlim=(-2, MASK - 0.4), ylim=(-4.5, 0.5), title="Each word is masked at a time of its own")
    left.axis("off")
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    schedules = {
        "linear": LinearSchedule(),
        "cosine": CosineSchedule(),
        "polynomial": PolynomialSchedule(2.0),
        "geometric": GeometricSchedule(),
    }
    for style, (name, schedule) in zip(("-", "--", "-.", ":"), schedules.items(), strict=True):
        right.plot(t, schedule.alpha(t), style, label=name)
    right.set(xlabel="t", title=r"$\alpha(t)$: share still visible")
    right.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("masking.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
