"""A task in the vocabulary of another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...checks import check_count
from .symbol_task import SymbolTask
from .task import Examples, Prompts, check_answers, prompt_kept


@dataclass(frozen=True, kw_only=True)
class TokenizedTask:
    """Write a task's symbols as token ids of a model's own vocabulary, between given tokens at both ends.

    Models whose positions are relative alone (rotary embeddings without a start token) cannot distinguish the cells of
    an empty grid; give them a ``prefix``.

    Args:
        task: whose symbols are written.
        token_ids: the model's id of each symbol, in the order of ``task.symbols``.
        mask_token_id: the model's mask.
        prefix: ids in front of every sequence, such as those of "[CLS]".
        suffix: ids at its end, such as those of "[SEP]".

    Raises:
        TypeError: if an id is no integer.
        ValueError: if an id is negative, two symbols have one id, or their number is not that of the task's symbols.

    Examples:
        >>> sudoku = Sudoku(4, mask_token_id=4)
        >>> ids = [11, 12, 13, 14]  # tokenizer.convert_tokens_to_ids(list(sudoku.symbols))
        >>> task = TokenizedTask(task=sudoku, token_ids=ids, mask_token_id=3, prefix=[1], suffix=[2])
        >>> task.sample_prompts(1).x_init
        tensor([[1, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2]])
    """

    task: SymbolTask
    token_ids: Sequence[int]
    mask_token_id: int
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()

    def __post_init__(self) -> None:
        symbols = self.task.symbols
        if len(self.token_ids) != len(symbols):
            raise ValueError(
                f"token_ids needs one id for each of the {len(symbols)} symbols {symbols!r}, got {len(self.token_ids)}"
            )
        for name, ids in (("token_ids", self.token_ids), ("prefix", self.prefix), ("suffix", self.suffix)):
            for token in ids:
                check_count(f"an id of {name}", token, minimum=0)
        check_count("mask_token_id", self.mask_token_id, minimum=0)
        known = [*self.token_ids, self.mask_token_id]
        repeated = next((token for token in known if known.count(token) > 1), None)
        if repeated is not None:
            raise ValueError(f"symbols and mask need different ids, got {repeated} twice; choose tokens that differ")
        if self.mask_token_id in (*self.prefix, *self.suffix):
            raise ValueError(f"prefix and suffix are given tokens, got the mask {self.mask_token_id}; leave it out")

    @property
    def length(self) -> int:
        """Tokens of a sequence, prefix and suffix included."""
        return len(self.prefix) + self.task.length + len(self.suffix)

    @property
    def vocab_size(self) -> int:
        """The largest id and one; the model's vocabulary may be larger."""
        return max(*self.token_ids, self.mask_token_id, *self.prefix, *self.suffix) + 1

    @property
    def num_solutions(self) -> int | None:
        """That of the task."""
        return self.task.num_solutions

    def sample_solutions(self, n: int, generator: Generator | None = None) -> Examples:
        """Draw ``n`` solved examples; see the task."""
        return Examples(*self._written(*self.task.sample_solutions(n, generator)))

    def sample_prompts(self, n: int, generator: Generator | None = None) -> Prompts:
        """Draw ``n`` prompts; see the task."""
        return self.sample_solutions(n, generator).prompts(self.mask_token_id)

    def prompts(self, prompts: Prompts) -> Prompts:
        """Prompts of the task in the model's ids."""
        return Prompts(*self._written(*prompts))

    def verify(self, sequences: Tensor, prompts: Prompts) -> Tensor:
        """Whether each sequence keeps prefix, suffix and prompt, and answers the prompt; bool ``[B]``.

        Args:
            sequences: the model's ids, int64 ``[B, L]``.
            prompts: of the sequences, in the model's ids.

        Raises:
            TypeError: if a tensor has a wrong type.
            ValueError: if shapes differ from each other, or from the task's length.
        """
        check_answers(sequences, prompts)
        if sequences.shape[1] != self.length:
            raise ValueError(f"sequences have {sequences.shape[1]} tokens, those of {self!r} have {self.length}")
        inner = Prompts(self._read(prompts.x_init), self._core(prompts.generation_mask))
        return prompt_kept(sequences, prompts) & self.task.verify(self._read(sequences), inner)

    def render(self, sequence: Tensor) -> str:
        """Write a sequence ``[L]`` for people, without prefix and suffix; see the task."""
        return self.task.render(self._read(sequence[None])[0])

    def _core(self, values_BL: Tensor) -> Tensor:
        """Values at the task's own positions."""
        return values_BL[:, len(self.prefix) : values_BL.shape[1] - len(self.suffix)]

    def _written(self, ids_BL: Tensor, generation_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols and masks of the task in the model's ids, between prefix and suffix, and the mask that fits."""
        table = torch.full((self.task.vocab_size,), self.mask_token_id)
        table[: len(self.token_ids)] = torch.tensor(list(self.token_ids))
        ends = [torch.tensor(list(ids), dtype=torch.long).expand(len(ids_BL), -1) for ids in (self.prefix, self.suffix)]
        sides = [torch.zeros_like(end, dtype=torch.bool) for end in ends]
        return (
            torch.cat([ends[0], table[ids_BL], ends[1]], dim=1),
            torch.cat([sides[0], generation_mask, sides[1]], dim=1),
        )

    def _read(self, sequences: Tensor) -> Tensor:
        """The task's own ids of the model's; -1 for what is neither a symbol nor the mask."""
        known = torch.tensor([*self.token_ids, self.mask_token_id], device=sequences.device)
        own = torch.tensor([*range(len(self.token_ids)), self.task.mask_token_id], device=sequences.device)
        equal_BLK = self._core(sequences)[..., None] == known
        return torch.where(equal_BLK.any(-1), own[equal_BLK.long().argmax(-1)], -1)
