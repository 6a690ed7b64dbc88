"""Tokenizers of the recipes: byte-level BPE of the corpus itself, or GPT-2's; the mask is the last id."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS_TOKEN = "<|endoftext|>"
MASK_TOKEN = "<|mask|>"


class TextTokenizer:
    """A thin face over `tokenizers.Tokenizer` that knows its end-of-text and mask ids.

    Text that spells a special token is encoded as the characters it is: no text can hold a mask.

    Raises:
        ValueError: if the tokenizer lacks either special token.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self.backend.encode_special_tokens = True
        self.eos_token_id = self._special(EOS_TOKEN)
        self.mask_token_id = self._special(MASK_TOKEN)

    def _special(self, token: str) -> int:
        index = self.backend.token_to_id(token)
        if index is None:
            raise ValueError(f"the tokenizer has no {token} token; add it as a special token")
        return index

    @property
    def vocab_size(self) -> int:
        """Classes, mask included: the greatest id and one, since ids may have gaps where entries were removed."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [encoding.ids for encoding in self.backend.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: list[int], *, mask: str = "_") -> str:
        """Text of a sequence; masks are shown as ``mask``, end-of-text as a paragraph break."""
        pieces: list[str] = []
        run: list[int] = []
        marks = {self.mask_token_id: mask, self.eos_token_id: "\n\n"}
        for index in ids:
            if index in marks:
                pieces += [self.backend.decode(run), marks[index]]
                run = []
            else:
                run.append(index)
        return "".join([*pieces, self.backend.decode(run)])

    def fingerprint(self) -> str:
        """Hash of the whole definition."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``."""
        self.backend.save(str(path))

    @classmethod
    def load(cls, path: Path) -> TextTokenizer:
        """Read ``tokenizer.json``."""
        return cls(Tokenizer.from_file(str(path)))


def train_tokenizer(documents: list[str], vocab_size: int) -> TextTokenizer:
    """Byte-level BPE of at most ``vocab_size`` entries: end-of-text is the first id, the mask the last."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    backend.add_special_tokens([MASK_TOKEN])
    return TextTokenizer(backend)


def gpt2_tokenizer(name_or_path: str = "gpt2") -> TextTokenizer:
    """GPT-2's byte-level BPE from the hub or a local folder, with the mask added as id 50257.

    Raises:
        FileNotFoundError: if it cannot be had.
    """
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(name_or_path, use_fast=True).backend_tokenizer
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no tokenizer at {name_or_path}; give --data.tokenizer a local folder, a tokenizer.json, or 'train'"
        ) from error
    backend.add_special_tokens([MASK_TOKEN])
    return TextTokenizer(backend)
