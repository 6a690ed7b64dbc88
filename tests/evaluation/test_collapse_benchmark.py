"""The benchmark of constructed collapses, with few samples."""

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

ROOT = Path(__file__).parents[2]


def test_every_constructed_collapse_is_caught_and_the_teacher_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    from benchmarks import collapse

    collapse.main(["--output", str(tmp_path), "--samples", "32", "--steps", "8"])
    rows = json.loads((tmp_path / "collapse.json").read_text())["rows"]
    lost = {name for name, row in rows.items() if row["lost"]}
    # Of 32 samples none can repeat 48 texts.
    few = {"2 texts, repeated", "12 texts, repeated"}
    assert lost == few | {name for name in rows if name.startswith("one text")}
