"""Draw why few steps lose: a language of two cities, sampled in 1, 2, 4 and 16 steps. Writes ``few_steps.svg``.

All figures are exact: `discrete_distill.exact` computes the distribution of the sampler.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from discrete_distill import MaskedDiffusion, exact
from discrete_distill.process import LinearSchedule

WORDS = ("new", "los", "york", "angeles")
PAIRS = ((0, 2), (1, 3), (0, 3), (1, 2))  # The language says the first two.
STEPS = (1, 2, 4, 16)
MASK = 4


def language() -> Tensor:
    """Probability of each pair of words, fp64 ``[4, 4]``: "new york" 0.6, "los angeles" 0.4."""
    distribution = torch.full((4, 4), 1e-12, dtype=torch.float64)
    distribution[0, 2], distribution[1, 3] = 0.6, 0.4
    return distribution / distribution.sum()


def sampled(num_steps: int) -> Tensor:
    """Distribution of the ancestral sampler with the perfect denoiser, fp64 ``[4, 4]``."""
    denoiser = exact.DistributionDenoiser(language(), MASK)
    process = MaskedDiffusion(MASK, schedule=LinearSchedule())
    return exact.sampler_distribution(denoiser, process, exact.uniform_times(num_steps), 2, 4)


def main() -> None:
    """Write the figure."""
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "few_steps", "font.size": 9, "svg.fonttype": "path"})
    from matplotlib import pyplot as plt

    sets = {"the language": language()} | {f"{n} step{'s' * (n > 1)}": sampled(n) for n in STEPS}
    figure, axes = plt.subplots(1, len(sets), figsize=(10, 2.4), sharey=True)
    for axis, (name, distribution) in zip(axes, sets.items(), strict=True):
        heights = [float(distribution[pair]) for pair in PAIRS]
        axis.bar(range(4), heights, color=["#3f51b5", "#3f51b5", "#e65100", "#e65100"])
        for x, height in enumerate(heights):
            axis.text(x, height + 0.01, f"{height:.2f}", ha="center", fontsize=8)
        labels = [f"{WORDS[first]}\n{WORDS[second]}" for first, second in PAIRS]
        axis.set(title=name, xticks=range(4), xticklabels=labels, ylim=(0, 0.7))
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("probability")
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("few_steps.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
