"""From lists of ids to the sequences that a sampler fills in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_count


@dataclass(frozen=True)
class Frame:
    """Fixed tokens around the generated ones of every sequence, such as ``[CLS] ... [SEP]`` of BERT and ESM.

    It stands in the place of a length: in the ``shape`` of a sampler or of student paths, in ``rollout(batch_size,
    length)`` of a method and in the Trainer's ``length``. Rows of different lengths are made by `prompted`.

    Args:
        length: generated tokens of a sequence.
        prefix: ids before them.
        suffix: ids behind them.

    Raises:
        TypeError: if a length or an id is no integer.
        ValueError: if the length is below 1, or an id negative.

    Examples:
        >>> Frame(2, prefix=[0], suffix=[1]).x_init(1, mask_token_id=7).tolist()
        [[0, 7, 7, 1]]
    """

    length: int
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_count("length", self.length)
        for name in ("prefix", "suffix"):
            ids = tuple(check_count(f"an id of {name}", each, minimum=0) for each in _ids(getattr(self, name)))
            object.__setattr__(self, name, ids)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, length: int) -> Frame:
        """Read the tokens that a tokenizer of transformers puts around a text.

        Args:
            tokenizer: with a ``mask_token``.
            length: generated tokens of a sequence.

        Raises:
            ValueError: if the tokenizer has no mask token, or does not encode it as one token.
        """
        mask, mask_id = getattr(tokenizer, "mask_token", None), getattr(tokenizer, "mask_token_id", -1)
        ids = [] if mask is None else _ids(tokenizer(mask, add_special_tokens=True)["input_ids"])
        if ids.count(mask_id) != 1:
            raise ValueError(f"the tokenizer encodes its mask token {mask!r} as {ids}; give prefix and suffix as ids")
        place = ids.index(mask_id)
        return cls(length, tuple(ids[:place]), tuple(ids[place + 1 :]))

    def around(self, x: Tensor) -> Tensor:
        """Put the frame around sequences, int64 ``[B, length]`` to ``[B, L]``."""
        ends = [torch.tensor(each, dtype=x.dtype, device=x.device) for each in (self.prefix, self.suffix)]
        return torch.cat([ends[0].expand(len(x), -1), x, ends[1].expand(len(x), -1)], dim=1)

    def x_init(self, batch_size: int, *, mask_token_id: int, device: torch.device | str | None = None) -> Tensor:
        """Make the start of a sampler: masks in the frame, int64 ``[B, L]`` with ``L`` the length with its frame.

        Args:
            batch_size: number of sequences.
            mask_token_id: the mask.
            device: of the result.
        """
        row = torch.tensor([*self.prefix, *[mask_token_id] * self.length, *self.suffix], device=device)
        return row.repeat(check_count("batch_size", batch_size), 1)


def prompted(
    prompts: Sequence[Sequence[int]],
    length: int | Sequence[int],
    mask_token_id: int,
    *,
    suffixes: Sequence[Sequence[int]] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``x_init`` and ``attention_mask`` of sequences that start with prompts, end with suffixes and are masks between.

    Args:
        prompts: ids of each sequence; may be empty, and of different lengths.
        length: tokens of all sequences, prompt and suffix included, or of each (a ragged batch, padded on the right).
        mask_token_id: the mask.
        suffixes: ids at the end of each sequence.
        device: of the result.

    Returns:
        int64 ``[B, L]``, and bool ``[B, L]``, true at real tokens, or None if no sequence is padded.

    Raises:
        TypeError: if an id or a length is no integer.
        ValueError: if there is no prompt, an id is negative, a length is less than 1, numbers of prompts, lengths and
            suffixes differ, or prompt and suffix do not fit; the sequence is named.

    Examples:
        >>> x_init, attention_mask = prompted([[1, 2], [3]], length=[5, 4], mask_token_id=8, suffixes=[[7], [7]])
        >>> x_init
        tensor([[1, 2, 8, 8, 7],
                [3, 8, 8, 7, 8]])
        >>> attention_mask[1].tolist()
        [True, True, True, True, False]
    """
    check_count("mask_token_id", mask_token_id, minimum=0)
    prompts = [_ids(prompt) for prompt in prompts]
    count = len(prompts)
    lengths = list(length) if isinstance(length, Sequence) else [length] * count
    endings: list[list[int]] = [[]] * count if suffixes is None else [_ids(suffix) for suffix in suffixes]
    if not count or len(lengths) != count or len(endings) != count:
        raise ValueError(
            f"one length and one suffix for every prompt is needed, and one prompt at least; got {count} prompts, "
            f"{len(lengths)} lengths, {len(endings)} suffixes"
        )
    for number, (prompt, size, ending) in enumerate(zip(prompts, lengths, endings, strict=True)):
        check_count(f"length of sequence {number}", size)
        for token in (*prompt, *ending):
            check_count(f"a token id of sequence {number}", token, minimum=0)
    x_init = torch.full((count, max(lengths)), mask_token_id, dtype=torch.long)
    for number, (prompt, size, ending) in enumerate(zip(prompts, lengths, endings, strict=True)):
        if len(prompt) + len(ending) > size:
            raise ValueError(
                f"sequence {number}: {len(prompt)} tokens of prompt and {len(ending)} of suffix do not fit into "
                f"{size}; shorten them, or raise the length"
            )
        x_init[number, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        x_init[number, size - len(ending) : size] = torch.tensor(ending, dtype=torch.long)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return x_init.to(device), None if bool(real.all()) else real.to(device)


def _ids(tokens: Any) -> list[int]:
    """Ids as a list, of a tensor too."""
    return list(tokens.tolist() if hasattr(tokens, "tolist") else tokens)
