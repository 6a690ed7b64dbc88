import re
from pathlib import Path

import pytest

from discrete_distill import exact
from discrete_distill.process import MaskedDiffusion

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "exact.md"


def test_the_code_of_the_page_runs_from_top_to_bottom():
    names = {"__name__": "page"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    assert float(exact.kl(names["teacher"], names["distribution"])) < float(
        exact.kl(names["student"], names["distribution"])
    )
    assert names["ratio"].shape == (1000,)
    assert names["best"].reverse_kl < 0.1


def test_the_figures_of_the_perfect_denoiser_are_what_is_measured():
    chain, length = exact.small_chain()
    rows = re.findall(r"\| perfect denoiser \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", PAGE.read_text())
    assert len(rows) == 4
    for steps, *printed in rows:
        times = exact.uniform_times(int(steps))
        distribution = exact.sampler_distribution(
            chain.denoiser(5), MaskedDiffusion(5), times, length, 5, time_dependent=False
        )
        measured = (
            exact.kl(distribution, chain.distribution(length)),
            exact.kl(chain.distribution(length), distribution),
            exact.entropy(distribution),
        )
        assert [float(value) for value in printed] == pytest.approx([float(m) for m in measured], abs=6e-4)
