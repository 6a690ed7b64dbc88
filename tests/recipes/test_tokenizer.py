"""The tokenizer: any text comes back, and no text holds a mask."""

import contextlib
import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from accelerate.state import AcceleratorState
from hypothesis import given
from tokenizers import Tokenizer, models, pre_tokenizers

from discrete_distill.recipes.common.tokenizer import (
    EOS_TOKEN,
    LONGEST_RUN,
    MASK_TOKEN,
    TextTokenizer,
    gpt2_tokenizer,
    train_tokenizer,
)
from discrete_distill.recipes.owt import main

TEXT = ["the state of the union is strong", "the union of the states", "strong states, strong union"] * 4
TOKENIZER = train_tokenizer(TEXT, 280)


@given(text=st.text())
def test_any_text_comes_back_from_its_tokens(text: str) -> None:
    (ids,) = TOKENIZER.encode([text])
    assert TOKENIZER.decode(ids) == text
    assert not {TOKENIZER.mask_token_id, TOKENIZER.eos_token_id} & set(ids)


def test_the_end_of_text_is_the_first_id_and_the_mask_the_last() -> None:
    assert TOKENIZER.eos_token_id == 0
    assert TOKENIZER.mask_token_id == TOKENIZER.vocab_size - 1
    assert 257 < TOKENIZER.vocab_size <= 280


def test_it_has_learnt_to_merge() -> None:
    (ids,) = TOKENIZER.encode(["the union"])
    assert len(ids) < len("the union")


@pytest.mark.parametrize("special", [EOS_TOKEN, MASK_TOKEN])
def test_text_that_spells_a_special_token_is_only_text(special: str, tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    for tokenizer in (TOKENIZER, TextTokenizer.load(tmp_path / "tokenizer.json")):
        (ids,) = tokenizer.encode([f"a {special} b"])
        assert len(ids) > 5
        assert not {tokenizer.mask_token_id, tokenizer.eos_token_id} & set(ids)


def test_masks_and_ends_are_shown_in_their_place() -> None:
    (the, union) = TOKENIZER.encode(["the", " union"])
    ids = [*the, TOKENIZER.mask_token_id, *union, TOKENIZER.eos_token_id, *the]
    assert TOKENIZER.decode(ids) == "the_ union\n\nthe"
    assert TOKENIZER.decode(ids, mask="[?]") == "the[?] union\n\nthe"


def test_training_is_repeatable_and_loading_gives_the_same_tokenizer(tmp_path: Path) -> None:
    assert train_tokenizer(TEXT, 280).fingerprint() == TOKENIZER.fingerprint()
    assert train_tokenizer(TEXT, 270).fingerprint() != TOKENIZER.fingerprint()
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint() == TOKENIZER.fingerprint()
    assert loaded.encode(TEXT) == TOKENIZER.encode(TEXT)


def test_a_tokenizer_without_its_special_tokens_is_refused() -> None:
    bare = Tokenizer(models.BPE())
    with pytest.raises(ValueError, match="endoftext"):
        TextTokenizer(bare)
    bare.add_special_tokens([EOS_TOKEN])
    with pytest.raises(ValueError, match="mask"):
        TextTokenizer(bare)


# Files as others save them.


def saved() -> dict:
    return json.loads(TOKENIZER.definition())


def test_texts_are_encoded_whole_whatever_the_file_says_of_truncation(tmp_path: Path) -> None:
    backend = Tokenizer.from_str(TOKENIZER.definition())
    backend.enable_truncation(max_length=5)
    backend.enable_padding(pad_id=0, pad_token=EOS_TOKEN)
    backend.save(str(tmp_path / "tokenizer.json"))
    texts = ["the state of the union " * 20, "war"]
    assert TextTokenizer.load(tmp_path / "tokenizer.json").encode(texts) == TOKENIZER.encode(texts)


@pytest.mark.parametrize("token", [EOS_TOKEN, MASK_TOKEN])
def test_a_special_token_that_is_not_flagged_so_is_no_text_either(token: str, tmp_path: Path) -> None:
    changed = saved()
    for added in changed["added_tokens"]:
        added["special"] = added["special"] and added["content"] != token
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    tokenizer = TextTokenizer.load(tmp_path / "tokenizer.json")
    (ids,) = tokenizer.encode([f"write {token} here"])
    assert not {tokenizer.mask_token_id, tokenizer.eos_token_id} & set(ids)
    assert tokenizer.vocab_size == TOKENIZER.vocab_size


def words_tokenizer(extra: dict[str, int]) -> Tokenizer:
    backend = Tokenizer(
        models.WordLevel({"a": 0, "b": 1, "<unk>": 2, EOS_TOKEN: 3, MASK_TOKEN: 4, **extra}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def test_a_vocabulary_that_spells_the_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"<\|"):
        TextTokenizer(words_tokenizer({}))


def test_ids_with_a_gap_lie_inside_the_vocabulary() -> None:
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate("ab<|>")} | {"z": 500}, []))
    backend.add_special_tokens([EOS_TOKEN, MASK_TOKEN])
    tokenizer = TextTokenizer(backend)
    assert max(tokenizer.encode(["abz"])[0]) == 500 < tokenizer.vocab_size


def test_a_long_run_without_a_space_comes_back_and_short_ones_are_not_cut() -> None:
    text = "ab" * LONGEST_RUN + " " * (2 * LONGEST_RUN + 3) + "é" * (LONGEST_RUN + 1)
    (ids,) = TOKENIZER.encode([text])
    assert TOKENIZER.decode(ids) == text
    short = "the union " * (LONGEST_RUN // 4) + "a" * (LONGEST_RUN - 1) + " " + "b" * LONGEST_RUN
    assert TOKENIZER.encode([short])[0] == TOKENIZER.backend.encode(short, add_special_tokens=False).ids


def damaged_files() -> dict[str, str]:
    merge = saved()
    merge["model"]["merges"].append(["qq", "zz"])
    pattern = saved()
    pattern["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    negative = saved()
    negative["model"]["vocab"]["zz"] = -1
    return {
        "empty": "", "null": "null", "list": "[]", "object": "{}", "number": "5", "deep": "[" * 100_000,
        "no model": json.dumps({name: part for name, part in saved().items() if name != "model"}),
        "no special tokens": json.dumps({**saved(), "added_tokens": []}),
        "merge": json.dumps(merge), "pattern": json.dumps(pattern), "negative": json.dumps(negative),
    }  # fmt: skip


@pytest.mark.parametrize("damage", damaged_files())
def test_a_damaged_file_is_one_sentence(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(damaged_files()[damage])
    with pytest.raises(ValueError, match="token"):
        TextTokenizer.load(file)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["distill", f"--data.tokenizer={file}", f"--output={tmp_path}/runs"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_panic_of_the_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException): ...

    class Panicking:
        @staticmethod
        def from_str(_: str) -> None:
            raise PanicException("index out of bounds")

    TOKENIZER.save(tmp_path / "tokenizer.json")
    monkeypatch.setattr("discrete_distill.recipes.common.tokenizer.Tokenizer", Panicking)
    with pytest.raises(ValueError, match="index out of bounds"):
        TextTokenizer.load(tmp_path / "tokenizer.json")


def test_a_tokenizer_that_knows_no_such_word_is_one_sentence() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="<unk>"))
    backend.add_special_tokens([EOS_TOKEN, MASK_TOKEN])
    with pytest.raises(ValueError, match="encode"):
        TextTokenizer(backend)


def test_code_in_a_tokenizers_folder_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    stated = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append("asked") or "n")
    with contextlib.suppress(FileNotFoundError):  # transformers may also fall back to the plain file.
        gpt2_tokenizer(str(tmp_path))
    assert not asked
    assert not (tmp_path / "ran").exists()
