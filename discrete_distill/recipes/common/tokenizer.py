"""Tokenizers of the recipes: byte-level BPE of the corpus itself, or GPT-2's; the mask is the last id."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ...files import write_text
from .files import read_text

EOS_TOKEN = "<|endoftext|>"
MASK_TOKEN = "<|mask|>"
# Characters without a change between space and text that are encoded at once: byte pairs are merged within such a run,
# and the time for that grows faster than its length.
LONGEST_RUN = 2**14
RUNS = re.compile(r"\S+|\s+")


class TextTokenizer:
    """A `tokenizers.Tokenizer` with an end-of-text and a mask token.

    Text that spells a special token is encoded as the characters it is: no text can hold a mask. Texts are encoded
    whole, whatever truncation or padding the tokenizer was saved with.

    Args:
        backend: with both special tokens; its settings are changed.

    Raises:
        ValueError: if it lacks either special token, or encodes text to one.

    Attributes:
        prefix: ids before the text of every sequence.
        suffix: ids behind it.
        forbidden_token_ids: ids beside the mask that are never generated.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    forbidden_token_ids: tuple[int, ...] = ()

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self.eos_token_id = self._special(EOS_TOKEN)
        self.mask_token_id = self._special(MASK_TOKEN)
        backend.no_truncation()
        backend.no_padding()
        # A token that was added without this flag would be found in text.
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self._specials()])
        backend.encode_special_tokens = True
        spelled = [token for token in self._specials() if self._finds(token)]
        if spelled:
            raise ValueError(
                f"the tokenizer encodes the text {spelled[0]!r} to that token; take it out of the model's vocabulary "
                "and add it as a special token"
            )

    @staticmethod
    def _specials() -> tuple[str, str]:
        return EOS_TOKEN, MASK_TOKEN

    def _special(self, token: str) -> int:
        index = self.backend.token_to_id(token)
        if index is None:
            raise ValueError(f"the tokenizer has no {token} token; add it as a special token")
        return index

    def _finds(self, token: str) -> bool:
        rows = self.encode([token, f"a {token} b"])
        return any(self.backend.token_to_id(token) in row for row in rows)

    @property
    def vocab_size(self) -> int:
        """Classes, mask included: the largest id plus one, whether or not every id below it is taken."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def token_to_id(self, token: str) -> int | None:
        """Id of an entry of the vocabulary, as it is spelled there; None if it has none."""
        return self.backend.token_to_id(token)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        pieces = [_without_long_runs(text) for text in texts]
        try:
            found = self.backend.encode_batch([piece for row in pieces for piece in row], add_special_tokens=False)
        except Exception as error:  # The library raises plain exceptions.
            raise ValueError(f"the tokenizer cannot encode the text: {error}") from error
        encoded = iter(found)
        return [[index for _ in row for index in next(encoded).ids] for row in pieces]

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
        """Hash of vocabulary and merges, the same for every version of the library that saves them."""
        vocabulary = sorted((index, token) for token, index in self.backend.get_vocab(with_added_tokens=True).items())
        merges = json.loads(self.backend.to_str())["model"].get("merges") or []
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
        return _hash(json.dumps([vocabulary, pairs]))

    def definition(self) -> str:
        """Everything that decides which tokens a text becomes, as JSON."""
        return self.backend.to_str()

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``."""
        write_text(path, self.definition())

    @classmethod
    def load(cls, path: Path) -> TextTokenizer:
        """Read ``tokenizer.json``.

        Raises:
            ValueError: if the file is no such tokenizer.
        """
        return cls(read_backend(path))


def read_backend(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json`` as it is."""
    content = read_text(path)
    try:
        return Tokenizer.from_str(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # The library raises plain exceptions, and panics that are no `Exception`.
        raise ValueError(f"{path} is no tokenizer of the tokenizers library: {error}") from error


def _without_long_runs(text: str) -> list[str]:
    if len(text) <= LONGEST_RUN:
        return [text]
    cuts = [cut for run in RUNS.finditer(text) for cut in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN)]
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        ValueError: if it lacks an end-of-text token.
    """
    backend = _pretrained_backend(name_or_path)
    backend.add_special_tokens([MASK_TOKEN])
    return TextTokenizer(backend)


def _pretrained_backend(name_or_path: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name_or_path, use_fast=True, trust_remote_code=False).backend_tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # transformers raises errors of a dozen kinds for a name or file that is wrong.
        raise FileNotFoundError(
            f"no tokenizer at {name_or_path} ({type(error).__name__}); give --data.tokenizer a local folder, a "
            "tokenizer.json, or 'train'"
        ) from error
