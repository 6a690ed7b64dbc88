"""Training text as settings of a run, so that a run that is resumed on other text is refused."""

from __future__ import annotations

import hashlib

import numpy as np

from ..training.stored_settings import Setting
from .corpus import TokenStream

SAMPLED_TOKENS = 1 << 14


def stream_settings(stream: TokenStream) -> dict[str, Setting]:
    """Length of sequences, number of tokens, and a digest of evenly spaced tokens of a stream.

    A sample is hashed in place of all tokens, because a stream may be a memory-mapped file of many gigabytes. Two texts
    of equal size that differ in few tokens may thus have one digest.

    Returns:
        ``text.length``, ``text.tokens`` and ``text.digest``, whatever the integer type of the ids.
    """
    positions = np.unique(np.linspace(0, len(stream.ids) - 1, SAMPLED_TOKENS).astype(np.int64))
    sample = np.asarray(stream.ids[positions], dtype="<i8")
    return {
        "text.length": stream.length,
        "text.tokens": len(stream.ids),
        "text.digest": hashlib.sha256(sample.tobytes()).hexdigest()[:16],
    }
