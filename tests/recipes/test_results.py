"""Figures on disk, and samples as they are shown."""

import io
import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from accelerate.state import AcceleratorState
from hypothesis import given
from rich.console import Console
from rich.markdown import Markdown

from discrete_distill.recipes import owt
from discrete_distill.recipes.common.printing import printable, quoted
from discrete_distill.recipes.common.results import read_results, write_results
from discrete_distill.recipes.compare import __main__ as compare
from discrete_distill.recipes.protein import __main__ as protein


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("content", ["{}", "", "[]", "null", "5", "[" * 100_000, '{"frontiers": 5}'])
@pytest.mark.parametrize(("recipe", "name"), [(owt, "evaluation"), (protein, "evaluation"), (compare, "comparison")])
def test_a_report_of_damaged_figures_is_one_sentence(
    recipe: object, name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{name}.json").write_text(content)
    assert recipe.main(["report", f"--output={tmp_path}", "--name=run"]) == 2  # type: ignore[attr-defined]
    message = capsys.readouterr().err
    assert f"{name}.json" in message
    assert len(message.splitlines()) == 1


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    write_results(file, {"seconds": 3, "lines": []})
    assert read_results(file, {"seconds": float, "lines": list}) == {"seconds": 3, "lines": []}
    with pytest.raises(ValueError, match="lines"):
        read_results(file, {"lines": dict})
    with pytest.raises(FileNotFoundError, match="train"):
        read_results(tmp_path / "none.json", {}, stage="train")
    assert json.loads(file.read_text()) == {"seconds": 3, "lines": []}


@given(text=st.text())
def test_a_terminal_gets_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert not [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]


@given(text=st.text(alphabet="ab []<>*_`#|~\\!&", min_size=1, max_size=30).filter(str.strip))
def test_a_quotation_shows_what_a_sample_says_and_obeys_none_of_it(text: str) -> None:
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(Markdown(quoted(f"x{text}x")))
    shown = out.getvalue().replace("\u258c", "").strip()
    assert shown == " ".join(f"x{text}x".split())


@pytest.mark.parametrize("spelled", ["[/b]", "[red]", "[bold]x[/bold]", "[link=http://a.b]"])
def test_samples_are_printed_as_they_are(
    spelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from discrete_distill.models import DiT, DiTConfig

    monkeypatch.setenv("COLUMNS", "200")
    student = DiT(DiTConfig(vocab_size=2048, max_length=32, hidden_size=16, num_layers=1, num_heads=2, cond_size=8))
    student.save_pretrained(tmp_path / "run" / "student")
    flags = [f"--output={tmp_path}", "--name=run", "--data.length=32", "--sample.count=1", "--sample.steps=1"]
    with pytest.warns(UserWarning, match="tokenizer_fingerprint"):
        assert owt.main(["sample", *flags, f"--sample.prompt=see {spelled} x"]) == 0
    assert f"see {spelled} x" in capsys.readouterr().out
