"""Training text as settings of a run, so that a run that is resumed on other text is refused."""

from __future__ import annotations

from ...training.stored_settings import Setting
from .corpus import TokenStream


def stream_settings(stream: TokenStream) -> dict[str, Setting]:
    """Length of sequences, number of tokens, and a digest of all tokens of a stream.

    Returns:
        ``text.length``, ``text.tokens`` and ``text.digest``, whatever the integer type of the ids.
    """
    return {
        "text.length": stream.length,
        "text.tokens": len(stream.ids),
        "text.digest": stream.text_digest()[:16],
    }
