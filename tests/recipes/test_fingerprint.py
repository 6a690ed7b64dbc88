"""Networks and tokenizers belong together by what ids mean, not by how many there are."""

import json
import warnings
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from published_files import lines_of_text, write_gpt2, write_mdlm
from tokenizers import Tokenizer

from discrete_distill.models.io import hub
from discrete_distill.recipes import owt
from discrete_distill.recipes.common.assets import asset
from discrete_distill.recipes.common.fingerprint import (
    FINGERPRINT_FILE,
    GPT2_CLASSES,
    GPT2_IDS,
    check_tokenizer,
    read_fingerprint,
    write_fingerprint,
)
from discrete_distill.recipes.common.tokenizer import TextTokenizer, train_tokenizer
from discrete_distill.recipes.compare import __main__ as compare
from discrete_distill.recipes.protein import __main__ as protein
from discrete_distill.recipes.protein.residues import ResidueTokenizer

ONE = train_tokenizer(lines_of_text(), 280)
OTHER = train_tokenizer(["entirely other words than those of presidents"] * 9, 280)


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_fingerprint_is_that_of_the_vocabulary_and_not_of_its_file() -> None:
    assert ONE.vocab_size == OTHER.vocab_size
    assert ONE.fingerprint() != OTHER.fingerprint()
    saved = json.loads(ONE.definition())
    # Older versions of the library write merges as one string, and all of them keep truncation in the file.
    saved["model"]["merges"] = [" ".join(pair) for pair in saved["model"]["merges"]]
    older = Tokenizer.from_str(json.dumps(saved))
    older.enable_truncation(12)
    assert TextTokenizer(older).fingerprint() == ONE.fingerprint()
    saved["model"]["vocab"]["a"], saved["model"]["vocab"]["b"] = (saved["model"]["vocab"][token] for token in "ba")
    assert TextTokenizer(Tokenizer.from_str(json.dumps(saved))).fingerprint() != ONE.fingerprint()


def test_the_shipped_networks_carry_the_fingerprint_of_the_shipped_tokenizer() -> None:
    shipped = TextTokenizer.load(asset("tokenizer.json"))
    for name in ("teacher", "judge"):
        assert read_fingerprint(asset(name)) == shipped.fingerprint()
    assert read_fingerprint(asset("protein/teacher")) == ResidueTokenizer().fingerprint()


def test_a_network_is_refused_with_a_tokenizer_of_its_size_but_not_its_own(tmp_path: Path) -> None:
    write_fingerprint(tmp_path, ONE)
    check_tokenizer(tmp_path, ONE.vocab_size, ONE, flag="--teacher.path")
    with pytest.raises(ValueError, match=OTHER.fingerprint()):
        check_tokenizer(tmp_path, ONE.vocab_size, OTHER, flag="--teacher.path")
    with pytest.raises(ValueError, match=str(ONE.vocab_size + 1)):
        check_tokenizer(tmp_path, ONE.vocab_size + 1, ONE, flag="--teacher.path")
    (tmp_path / "model.safetensors").touch()
    assert read_fingerprint(tmp_path / "model.safetensors") == ONE.fingerprint()


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"fingerprint": 5}', "[" * 5000, ""])
def test_a_damaged_fingerprint_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / FINGERPRINT_FILE).write_text(content)
    with pytest.raises(ValueError, match=FINGERPRINT_FILE):
        read_fingerprint(tmp_path)


def test_without_a_fingerprint_there_is_one_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            check_tokenizer(tmp_path, ONE.vocab_size, ONE, flag="--teacher.path")
    assert len(caught) == 1
    assert str(tmp_path) in str(caught[0].message)


class Sized:
    """A tokenizer of GPT-2's size with some of its ids changed."""

    vocab_size = GPT2_CLASSES

    def __init__(self, **changed: int) -> None:
        self.ids = {**GPT2_IDS, **changed}

    def token_to_id(self, token: str) -> int | None:
        return self.ids.get(token)


def test_a_published_teacher_of_gpt2s_size_wants_gpt2s_ids(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_tokenizer(tmp_path, GPT2_CLASSES, Sized(), flag="--teacher.path")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="15496"):
        check_tokenizer(tmp_path, GPT2_CLASSES, Sized(Hello=7), flag="--teacher.path")  # type: ignore[arg-type]


def test_a_name_on_the_hub_that_cannot_be_reached_has_no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(hub, "find_file", unreachable)
    assert read_fingerprint("someone/model") is None


# From the command line.

TINY = [
    "--data.length=16", "--precision=fp32", "--name=run", "--distill.loop.num-steps=1", "--distill.batch-size=4",
    "--distill.method.log-ratio-warmup=0",
    "--distill.method.group-size=2", "--discriminator.updates=0",
]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text whose tokenizer can have as many entries as the shipped one."""
    import random

    draw = random.Random(0)
    words = ["".join(draw.choices("bcdfglmnprstaeiou", k=draw.randint(3, 9))) for _ in range(3000)]
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(" ".join(draw.choices(words, k=40)) for _ in range(300)))
    return path


def test_the_shipped_teacher_is_refused_with_a_tokenizer_of_another_text(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TINY, f"--output={tmp_path}/runs", f"--data.source={text}", "--data.tokenizer=train"]
    assert owt.main(["distill", *flags]) == 2
    assert TextTokenizer.load(asset("tokenizer.json")).fingerprint() in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_student_is_sampled_with_its_own_tokenizer_alone(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TINY, f"--output={tmp_path}/runs", f"--data.source={text}"]
    assert owt.main(["distill", *flags]) == 0
    assert read_fingerprint(tmp_path / "runs" / "run" / "student") is not None
    train_tokenizer(text.read_text().splitlines(), 2048).save(tmp_path / "other.json")
    assert owt.main(["sample", *flags, f"--data.tokenizer={tmp_path}/other.json"]) == 2
    assert "--data.tokenizer" in capsys.readouterr().err


def test_a_teacher_is_trained_further_with_its_own_tokenizer_alone(text: Path, tmp_path: Path) -> None:
    flags = [*TINY, f"--output={tmp_path}", f"--data.source={text}", "--data.tokenizer=train"]
    assert owt.main(["teacher", *flags, "--teacher.init=bundled", "--teacher.loop.num-steps=1"]) == 2


def test_a_text_teacher_of_22_classes_is_no_protein_teacher(tmp_path: Path) -> None:
    write_mdlm(tmp_path / "mdlm", 22)
    write_fingerprint(tmp_path / "mdlm", ONE)
    assert protein.main(["distill", *TINY, f"--teacher.path={tmp_path}/mdlm", f"--output={tmp_path}/runs"]) == 2


def test_an_autoregressive_baseline_is_compared_under_its_own_tokenizer_alone(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gpt2(tmp_path / "baseline", 2048, None)
    write_fingerprint(tmp_path / "baseline", ONE)
    flags = ["--data.length=16", f"--data.source={text}", f"--output={tmp_path}/runs", "--methods=ar"]
    assert compare.main(["train", *flags, f"--autoregressive.path={tmp_path}/baseline"]) == 2
    assert "--autoregressive.path" in capsys.readouterr().err
