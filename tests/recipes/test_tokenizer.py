"""The tokenizer: any text comes back, and no text holds a mask."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tokenizers import Tokenizer, models

from discrete_distill.recipes.tokenizer import EOS_TOKEN, MASK_TOKEN, TextTokenizer, train_tokenizer

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


def test_ids_with_gaps_are_all_classes() -> None:
    """Where entries were removed, the greatest id lies beyond the number of entries."""
    backend = Tokenizer(models.WordLevel({"a": 0, EOS_TOKEN: 1, MASK_TOKEN: 2, "z": 500}, unk_token="a"))
    assert TextTokenizer(backend).vocab_size == 501
