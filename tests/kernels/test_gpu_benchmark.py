from __future__ import annotations

import csv
import json
import pathlib

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu

    monkeypatch.setattr(gpu, "MEASURE_SECONDS", 0.0)
    return gpu


def test_the_dry_run_checks_everything_and_says_that_it_measured_no_gpu(gpu, tmp_path, capsys):
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["about"]["measured_on_a_gpu"] is False
    checks = {check["check"]: check["passed"] for check in result["checks"]}
    assert sum(passed is True for passed in checks.values()) == 30  # 3 dtypes x 5 sizes x 2 kernels
    assert all(passed is None for name, passed in checks.items() if name.startswith("goal"))
    with (tmp_path / "gpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["what"] for row in rows} == {"step", "losses forward", "losses"}
    assert {(row["batch"], row["dtype"], row["masked"]) for row in rows} == {
        (batch, dtype, masked) for batch in "23" for dtype in ("bfloat16", "float32") for masked in ("100%", "50%")
    }
    assert "0 failed" in capsys.readouterr().out


def test_without_a_gpu_it_says_so_and_past_its_time_it_starts_nothing(gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "none")]) == 2
    assert "no CUDA device here" in capsys.readouterr().err
    gpu.main(["--dry-run", "--seconds", "0", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert rows
    assert all(row["note"] == "out of time" for row in rows)


def test_the_oracle_finds_a_wrong_token(gpu, tmp_path, monkeypatch):
    """A sampler that is off by one lane now and then must fail the check that the GPU run relies on."""
    real = gpu.sample_rows

    def wrong(logits, **options):
        sample = real(logits, **options)
        tokens = torch.where(
            torch.arange(len(logits))[:, None] == 5, (sample.tokens + 1) % logits.shape[1], sample.tokens
        )
        return sample._replace(tokens=tokens)

    monkeypatch.setattr(gpu, "sample_rows", wrong)
    assert gpu.main(["--dry-run", "--seconds", "0", "--out", str(tmp_path)]) == 1
