from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "evaluation.md"


def test_the_code_of_the_page_runs_and_the_better_student_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})
    (ratio,) = re.findall(r"student, 8 steps: ([0-9.]+) times the perplexity", capsys.readouterr().out)
    assert 0.2 < float(ratio) < 0.9
    assert (tmp_path / "runs" / "frontier.png").stat().st_size > 10_000
