"""The comparison on a GPU walks through all of it on any device, and leaves out a method that fails."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if importlib.util.find_spec("benchmarks.gpu_compare") is None:
        pytest.fail("benchmarks/gpu_compare.py is not importable")
    from benchmarks import gpu_compare

    return gpu_compare


def test_methods_train_side_by_side_and_one_that_fails_is_left_out(benchmark, tmp_path: Path) -> None:
    # A budget below one step of DiDi-Instruct: its training is refused, and the comparison goes on without it.
    flags = ["--tiny", "--amount", "20", "--train-seeds", "0", "1", "--methods", "alpha", "didi"]
    assert benchmark.main([*flags, "--out", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "comparison.json").read_text())
    assert {line["method"] for line in results["lines"]} == {"teacher", "alpha"}
    assert len(results["training"]["alpha"]) == 2
    assert (tmp_path / "report.md").stat().st_size > 0
    assert not (tmp_path / "work").exists()


def test_without_a_gpu_nothing_starts(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
