"""Samples as they are shown: a model may write anything, also what a terminal or a page would obey."""

from __future__ import annotations

import re
import unicodedata

MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")


def printable(text: str) -> str:
    """Text with control characters other than line breaks and tabs shown as U+FFFD: a terminal obeys them."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def quoted(text: str) -> str:
    """Text as one Markdown quotation, its own Markdown and HTML escaped."""
    return "> " + MARKDOWN.sub(r"\\\1", printable(" ".join(text.split())))
