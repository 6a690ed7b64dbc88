"""Which tokenizer a saved network belongs to: a fingerprint of the vocabulary, stored beside the weights.

Two vocabularies of one size give ids that mean different text. The number of classes therefore proves nothing; the
fingerprint is equal where every id stands for the same piece of text.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from ...files import write_text
from ...models.io.hub import FINGERPRINT_FILE, fingerprint_of, stored_fingerprint
from .tokenizer import TextTokenizer

# Published MDLM, DUO, SDTT and DiDi-Instruct networks of text: GPT-2's 50257 tokens, then the mask.
GPT2_CLASSES = 50258
GPT2_IDS = {"!": 0, "the": 1169, "\u0120the": 262, "\u0120world": 995, "Hello": 15496, "<|endoftext|>": 50256}


def write_fingerprint(folder: Path, tokenizer: TextTokenizer) -> None:
    """Record beside a network which tokenizer it was trained with."""
    write_text(folder / FINGERPRINT_FILE, json.dumps(fingerprint_of(tokenizer), indent=1) + "\n")


def read_fingerprint(name_or_path: str | Path) -> str | None:
    """Read the fingerprint beside a network.

    Returns:
        The fingerprint, or None where none is stored or the hub cannot be reached.
    """
    stored = stored_fingerprint(name_or_path)
    if stored is None:
        return None
    fingerprint = stored.get("fingerprint")
    if not isinstance(fingerprint, str):
        raise ValueError(
            f"{FINGERPRINT_FILE} of {name_or_path} holds no fingerprint of a tokenizer; write it again with "
            "write_fingerprint"
        )
    return fingerprint


def check_tokenizer(name_or_path: str | Path, vocab_size: int, tokenizer: TextTokenizer, *, flag: str) -> None:
    """Refuse a network and a tokenizer that do not belong together.

    A network without a fingerprint is checked as far as is known: its number of classes, and for 50258 classes the ids
    of GPT-2's vocabulary. For any other size a warning states that the tokenizer could not be verified.
    """
    remedy = f"give {flag}, --teacher.path and --data.tokenizer that belong together"
    if vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"the model has {vocab_size} classes and the tokenizer {tokenizer.vocab_size} (mask included); {remedy}"
        )
    stored = read_fingerprint(name_or_path)
    if stored is None and vocab_size == GPT2_CLASSES:
        wrong = [token for token, index in GPT2_IDS.items() if tokenizer.token_to_id(token) != index]
        if wrong:
            raise ValueError(
                f"{name_or_path} has the {vocab_size} classes of GPT-2's vocabulary, but {wrong[0]!r} is not token "
                f"{GPT2_IDS[wrong[0]]} of the tokenizer; {remedy}, or store its fingerprint with write_fingerprint"
            )
    elif stored is None:
        warnings.warn(
            f"{name_or_path} has no {FINGERPRINT_FILE}: its tokenizer is known by the number of classes alone",
            stacklevel=2,
        )
    elif stored != tokenizer.fingerprint():
        raise ValueError(
            f"{name_or_path} was trained with a tokenizer of fingerprint {stored}, and --data.tokenizer has "
            f"{tokenizer.fingerprint()}; {remedy}"
        )
