"""The GPU benchmark walked through on a CPU: every part runs, and a part that fails leaves the others their rows."""

from __future__ import annotations

import csv
import json
import pathlib
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu

    return gpu


def results(folder: pathlib.Path) -> dict:
    return json.loads((folder / "gpu.json").read_text())


def test_the_dry_run_checks_everything_and_says_that_it_measured_no_gpu(gpu, tmp_path):
    assert gpu.main(["--dry-run", "--in-process", "--out", str(tmp_path)]) == 0
    found = results(tmp_path)
    assert found["about"]["measured_on_a_gpu"] is False
    checks = {check["check"]: check["passed"] for check in found["checks"]}
    assert sum(passed is True for passed in checks.values()) == 31  # philox, and 3 dtypes x 5 sizes x 2 kernels
    assert all(passed is None for name, passed in checks.items() if name.startswith("goal"))
    with (tmp_path / "gpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["what"] for row in rows} == {"sample_rows", "step", "losses forward", "losses"}
    padded = {(row["batch"], row["dtype"], row["masked"]) for row in rows if row["stride"] == "1536"}
    assert padded == {
        (batch, dtype, masked) for batch in "23" for dtype in ("bfloat16", "float32") for masked in ("100%", "50%")
    }
    # Rows that are no multiple of 16 bytes, as a network makes them that does not pad.
    assert {row["what"] for row in rows if row["stride"] == "1500"} == {row["what"] for row in rows}


def test_without_a_gpu_it_says_so_and_past_its_time_it_starts_nothing(gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
    gpu.main(["--dry-run", "--in-process", "--seconds", "0", "--out", str(tmp_path)])
    found = results(tmp_path)
    assert found["rows"]
    assert all(row["note"] == "out of time" for row in found["rows"])
    assert all(check["passed"] is None for check in found["checks"])


@pytest.fixture
def checks(gpu):
    from benchmarks import gpu_checks

    return gpu_checks


def test_the_oracle_finds_a_wrong_token_and_one_that_was_not_drawn(gpu, checks, tmp_path, monkeypatch):
    real = checks.sample_rows

    def run_with(change) -> list[dict]:
        def wrong(logits, **options):
            sample = real(logits, **options)
            fifth = torch.arange(len(logits))[:, None] == 5
            return sample._replace(tokens=torch.where(fifth, change(sample.tokens, logits), sample.tokens))

        monkeypatch.setattr(checks, "sample_rows", wrong)
        monkeypatch.setattr(gpu, "GROUPS", {"tokens": gpu.GROUPS["tokens"]})
        assert gpu.main(["--dry-run", "--in-process", "--out", str(tmp_path)]) == 1
        return results(tmp_path)["checks"]

    assert not any(check["passed"] for check in run_with(lambda tokens, logits: (tokens + 1) % logits.shape[1]))
    assert not any(check["passed"] for check in run_with(lambda tokens, logits: torch.full_like(tokens, -1)))


def test_a_kernel_that_raises_leaves_the_other_rows(gpu, checks, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("the kernel does not compile")

    monkeypatch.setattr(checks, "sample_rows", broken)
    monkeypatch.setattr(gpu, "sample_rows", broken)
    assert gpu.main(["--dry-run", "--in-process", "--out", str(tmp_path)]) == 1
    found = results(tmp_path)
    passed = {check["check"]: check["passed"] for check in found["checks"]}
    assert all(passed[name] is False for name in passed if name.startswith("sample_rows"))
    assert all(passed[name] is True for name in passed if name.startswith("token_losses"))
    assert passed["philox"] is True
    noted = {row["what"]: "note" in row for row in found["rows"]}
    assert noted["sample_rows"]
    assert not noted["losses"]


def test_a_group_whose_process_dies_leaves_the_others(gpu, tmp_path, monkeypatch):
    command = gpu.group_command

    def dies_in_tokens(name, *arguments):
        return [sys.executable, "-c", "import os; os.abort()"] if name == "tokens" else command(name, *arguments)

    monkeypatch.setattr(gpu, "group_command", dies_in_tokens)
    monkeypatch.setattr(gpu, "GROUPS", {name: gpu.GROUPS[name] for name in ("tokens", "philox")})
    monkeypatch.chdir(ROOT)
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 1
    passed = {check["check"]: check["passed"] for check in results(tmp_path)["checks"]}
    assert passed == {"group tokens": False, "philox": True}
