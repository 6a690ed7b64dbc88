"""Tasks of the recipe by name: what is solved, how it is written as tokens, and the network that starts from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...evaluation.tasks import (
    Arithmetic,
    BalancedBrackets,
    Countdown,
    Permutations,
    Prompts,
    Sudoku,
    SymbolTask,
    Task,
    TokenizedTask,
)
from ...evaluation.tasks.sudoku_grids import BOX_SHAPES
from ...files import write_text
from ...models import DiT, DiTConfig
from ..common.tokenizer import TextTokenizer

TaskName = Literal["sudoku", "permutations", "brackets", "countdown", "arithmetic"]
PEER_BIAS = 4.0  # Weight exp(4) in the first attention of a cell that shares the line, against 1 of others.


@dataclass(frozen=True, kw_only=True)
class NamedTask:
    """A task and its tokens.

    Positions of Sudoku and permutations are alike: the network needs to know which cells share a row, column or box,
    and nothing else, which a bias of the attention states. Other tasks are written behind a start token, from which
    rotary positions count.

    Args:
        name: of the task.
        size: cells of a side, letters, pairs, given numbers, or digits.
        symbols_task: the task over its own symbols.
    """

    name: TaskName
    size: int
    symbols_task: SymbolTask

    @property
    def has_start(self) -> bool:
        """Whether a start token stands before the sequence."""
        return self.name not in ("sudoku", "permutations")

    @property
    def mask_token_id(self) -> int:
        """The last id; the start token, if there is one, is before it."""
        return len(self.symbols_task.symbols) + self.has_start

    @property
    def prefix(self) -> tuple[int, ...]:
        """Given tokens before the sequence."""
        return (len(self.symbols_task.symbols),) if self.has_start else ()

    @property
    def length(self) -> int:
        """Tokens of a sequence, the start token included."""
        return self.symbols_task.length + len(self.prefix)

    @property
    def num_given(self) -> int:
        """Tokens of the prompt that a sequence begins with, start token included; clues of a grid are not counted."""
        return int((~self.task.sample_prompts(1).generation_mask).sum())

    @property
    def answer_length(self) -> int:
        """Tokens of an answer."""
        return self.length - self.num_given

    @property
    def task(self) -> Task:
        """The task in the tokens of the network."""
        return self.in_tokens(self.symbols_task)

    def in_tokens(self, task: SymbolTask) -> Task:
        """A task over the same symbols in the tokens of the network."""
        if not self.has_start:
            return task
        ids = range(len(task.symbols))
        return TokenizedTask(task=task, token_ids=ids, mask_token_id=self.mask_token_id, prefix=self.prefix)

    def with_clues(self, num_clues: int) -> Task:
        """Sudoku with cells that are given in random places; another task as it is."""
        if not isinstance(self.symbols_task, Sudoku):
            return self.task
        return self.in_tokens(replace(self.symbols_task, num_clues=num_clues))

    def puzzles(self, texts: tuple[str, ...]) -> Prompts:
        """Read prompts, in the tokens of the network.

        Raises:
            ValueError: if one has another length or other characters, or is a Sudoku that contradicts itself.
        """
        task = self.symbols_task
        if isinstance(task, Sudoku):
            return task.puzzles(texts)
        x_init = task.parse(texts)
        prompts = Prompts(x_init, x_init == task.mask_token_id)
        return self.task.prompts(prompts) if isinstance(self.task, TokenizedTask) else prompts

    def network_config(self, config: DiTConfig) -> DiTConfig:
        """A shape with the vocabulary, the length and the positions of the task."""
        return replace(
            config,
            vocab_size=self.mask_token_id + 1,
            max_length=self.length,
            position_bias=not self.has_start,  # rotary positions where those of the task are a line
        )

    def new_network(self, config: DiTConfig) -> DiT:
        """A network with random weights; in each block of a Sudoku the first three heads attend to the cells that share
        the row, the column or the box, the others to all."""
        network = DiT(config)
        if self.name == "sudoku" and config.position_bias:
            peers_3LL = PEER_BIAS * sudoku_peers(self.size)
            with torch.no_grad():
                for block in network.blocks:
                    bias_HLL: Any = block.position_bias
                    bias_HLL[:3] = peers_3LL[: len(bias_HLL)]
        return network


def sudoku_peers(size: int) -> Tensor:
    """Whether two different cells share their row, column and box, fp32 ``[3, L, L]``."""
    height, width = BOX_SHAPES[size]
    cells = torch.arange(size * size)
    row, column = cells // size, cells % size
    groups_3L = torch.stack([row, column, row // height * (size // width) + column // width])
    shared_3LL = groups_3L[:, :, None] == groups_3L[:, None, :]
    return (shared_3LL & ~torch.eye(size * size, dtype=torch.bool)).float()


MAKERS: dict[str, tuple[int, Callable[[int], SymbolTask]]] = {
    "sudoku": (6, lambda size: Sudoku(size, mask_token_id=size)),
    "permutations": (8, lambda size: Permutations(size, mask_token_id=size)),
    "brackets": (6, lambda size: BalancedBrackets(size, mask_token_id=2)),
    "countdown": (3, lambda size: Countdown(num_numbers=size, num_digits=2, mask_token_id=18)),
    "arithmetic": (3, lambda size: Arithmetic(size, mask_token_id=12)),
}
"""Default size, and the task of a size, by name."""


def named_task(name: TaskName, size: int = 0) -> NamedTask:
    """Make a task.

    Args:
        name: of the task.
        size: 0 is the default of the task.

    Raises:
        ValueError: if the name is unknown, or the task has no such size.
    """
    if name not in MAKERS:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(MAKERS)}")
    default, make = MAKERS[name]
    return NamedTask(name=name, size=size or default, symbols_task=make(size or default))


class SymbolTokenizer(TextTokenizer):
    """One token a symbol; the mask is the last id.

    Args:
        named: the task.
    """

    def __init__(self, named: NamedTask) -> None:
        self.named = named
        self.mask_token_id = named.mask_token_id
        self.prefix = named.prefix
        self.forbidden_token_ids = named.prefix

    @property
    def vocab_size(self) -> int:
        """Symbols, the start token if there is one, and the mask."""
        return self.mask_token_id + 1

    def decode(self, ids: list[int], *, mask: str = "_") -> str:
        """A sequence as the task renders it."""
        return self.named.task.render(torch.tensor(ids)).replace("_", mask)

    def definition(self) -> str:
        """Task, size and symbols, as JSON."""
        named = self.named
        return json.dumps({"task": named.name, "size": named.size, "symbols": named.symbols_task.symbols})

    def fingerprint(self) -> str:
        """Hash of the whole definition."""
        return hashlib.sha256(self.definition().encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write the definition."""
        write_text(path, self.definition())
