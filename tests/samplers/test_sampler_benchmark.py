"""The benchmark of samplers from beginning to end with tiny shapes, whose times mean nothing."""

import csv
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def samplers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import samplers

    return samplers


def test_the_dry_run_times_every_part_and_judges_every_goal(samplers, tmp_path) -> None:
    samplers.main(["--dry-run", "--output", str(tmp_path)])
    document = json.loads((tmp_path / "samplers.json").read_text())
    assert document["gpu"] is None
    # Two of the reverse step alone; two for one sequence and for four, at 8 steps and at 16.
    assert len(document["goals"]) == 2 + 2 * 2 * 2
    with (tmp_path / "samplers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {
        "reverse step alone",
        "end to end",
        "step against vocab",
        "step against batch",
        "step against steps",
        "GPU, end to end",
    }
    ours = [row for row in rows if row["method"] == "discrete_distill"]
    assert all(float(row["times_ours"]) == 1.0 and float(row["seconds"]) > 0.0 for row in ours)
    for plot in ("samplers.png", "samplers-growth.png"):
        assert (tmp_path / plot).stat().st_size > 10_000


def test_one_part_alone_has_its_rows_and_no_goals_of_the_others(samplers, tmp_path) -> None:
    samplers.main(["--dry-run", "--only", "gpu", "--output", str(tmp_path)])
    document = json.loads((tmp_path / "samplers.json").read_text())
    assert {row["part"] for row in document["rows"]} == {"GPU, end to end"}
    assert document["goals"] == []


def test_a_sampler_that_fails_on_the_gpu_leaves_the_others_their_rows(samplers, tmp_path, monkeypatch) -> None:
    def broken(*arguments, **options):
        def fails() -> None:
            raise RuntimeError("an illegal instruction was encountered")

        return fails

    monkeypatch.setattr(samplers, "published_chain", broken)
    samplers.main(["--dry-run", "--only", "gpu", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "samplers.json").read_text())["rows"]
    ours = {"discrete_distill", "discrete_distill, compiled blocks", "discrete_distill, one graph"}
    assert {row["method"] for row in rows} == ours


def test_memory_is_the_greatest_sum_that_is_held_at_once(samplers) -> None:
    import torch

    def one_after_another() -> None:
        for _ in range(3):
            torch.ones(2**20)

    def together() -> None:
        held = [torch.ones(2**20) for _ in range(3)]
        held.clear()

    assert samplers.peak_megabytes(one_after_another) == pytest.approx(4.0, abs=0.1)
    assert samplers.peak_megabytes(together) == pytest.approx(12.0, abs=0.1)
