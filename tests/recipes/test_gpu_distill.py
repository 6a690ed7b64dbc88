"""The GPU benchmark of the whole method, walked through at tiny size."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu_distill

    monkeypatch.setattr(gpu_distill, "TRIED_UPDATES", 2)
    return gpu_distill


def test_at_tiny_size_it_trains_distils_compares_and_says_where_and_when(benchmark, tmp_path: Path) -> None:
    assert benchmark.main(["--tiny", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "gpu_distill.json").read_text())
    assert summary["tiny"] is True
    assert "CPU" in summary["device"] or torch.cuda.is_available()
    assert {line["method"] for line in summary["results"]["lines"]} == {
        "teacher", "sdtt", "didi", "didi + RGAS", "feature-mmd", "alpha", "ar",
    }  # fmt: skip
    for name in ("report.md", "frontier.png", "steps.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert not (tmp_path / "work").exists()


def test_the_full_teacher_has_thirty_million_parameters_and_without_a_gpu_nothing_starts(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = benchmark.full_config(tmp_path)
    assert benchmark.network_shape(config.teacher.model).parameters >= 30e6
    planned = 75.0 + config.amount * len(config.methods)
    assert planned < benchmark.TRAINING_SHARE * benchmark.LIMIT_SECONDS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_late_it_trains_and_measures_no_more_and_keeps_what_is_there(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "TRAINING_SHARE", 0.0)
    benchmark.main(["--tiny", "--out", str(tmp_path)])
    summary = json.loads((tmp_path / "gpu_distill.json").read_text())
    assert {line["method"] for line in summary["results"]["lines"]} == {"teacher"}


def test_a_stage_that_fails_leaves_the_stages_before_it_on_disk(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(benchmark.Comparison, "evaluate", broken)
    monkeypatch.setattr(benchmark.Comparison, "train", lambda self, late: None)
    assert benchmark.main(["--tiny", "--out", str(tmp_path)]) == 1
    stages = json.loads((tmp_path / "gpu_distill.json").read_text())["stages"]
    assert stages["teacher"]["failure"] is None
    assert "out of luck" in stages["evaluate"]["failure"]
    assert "report" not in stages
