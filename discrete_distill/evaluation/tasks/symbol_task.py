"""Base of tasks whose tokens are single characters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...checks import check_count
from .task import Examples, Prompts, check_answers, prompt_kept

MASK_CHARACTER = "_"


@dataclass(frozen=True, kw_only=True)
class SymbolTask(ABC):
    """A `Task` over characters: character ``symbols[v]`` has the token id ``v``.

    A task of one's own defines `symbols`, `length`, `sample_solutions` and `is_solution`.

    Args:
        mask_token_id: id of the mask, which is no id of a symbol.

    Raises:
        TypeError: if ``mask_token_id`` is no integer.
        ValueError: if it is the id of a symbol.

    Examples:
        >>> class Doubled(SymbolTask):  # "aa" or "bb"
        ...     symbols, length, num_solutions = "ab", 2, 2
        ...     def sample_solutions(self, n, generator=None):
        ...         letters = torch.randint(2, (n, 1), generator=generator).repeat(1, 2)
        ...         return Examples(letters, generation_mask=letters >= 0)
        ...     def is_solution(self, sequences):
        ...         return sequences[:, 0] == sequences[:, 1]
        >>> check_task(Doubled(mask_token_id=2))
    """

    mask_token_id: int

    def __post_init__(self) -> None:
        count = len(self.symbols)
        if check_count("mask_token_id", self.mask_token_id, minimum=0) < count:
            raise ValueError(
                f"mask_token_id {self.mask_token_id} is the id of the symbol {self.symbols[self.mask_token_id]!r}; "
                f"give {count} or more"
            )

    @property
    @abstractmethod
    def symbols(self) -> str:
        """The characters, in the order of their ids."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens of a sequence, prompt included."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, mask included."""
        return self.mask_token_id + 1

    @property
    def num_solutions(self) -> int | None:
        """Number of right answers where all prompts are alike and the examples are uniform over right answers, or
        None."""
        return None

    @abstractmethod
    def sample_solutions(self, n: int, generator: Generator | None = None) -> Examples:
        """Draw ``n`` solved examples.

        Args:
            n: number of examples.
            generator: source of randomness, on the CPU.
        """

    @abstractmethod
    def is_solution(self, sequences: Tensor) -> Tensor:
        """Whether the answer in each sequence is right for the prompt in the sequence.

        Args:
            sequences: ids of symbols, int64 ``[B, L]``.

        Returns:
            bool ``[B]``.
        """

    def sample_prompts(self, n: int, generator: Generator | None = None) -> Prompts:
        """Draw ``n`` prompts from the distribution of the examples'.

        Args:
            n: number of prompts.
            generator: source of randomness, on the CPU.
        """
        return self.sample_solutions(n, generator).prompts(self.mask_token_id)

    def verify(self, sequences: Tensor, prompts: Prompts) -> Tensor:
        """Whether each sequence keeps its prompt, holds symbols alone and has a right answer.

        Args:
            sequences: token ids, int64 ``[B, L]``.
            prompts: of the sequences.

        Returns:
            bool ``[B]``.

        Raises:
            TypeError: if a tensor has a wrong type.
            ValueError: if shapes differ from each other, or from the task's length.
        """
        check_answers(sequences, prompts)
        if sequences.shape[1] != self.length:
            raise ValueError(f"sequences have {sequences.shape[1]} tokens, those of {self!r} have {self.length}")
        last = len(self.symbols) - 1
        symbols_alone = ((sequences >= 0) & (sequences <= last)).all(1)
        return prompt_kept(sequences, prompts) & symbols_alone & self.is_solution(sequences.clamp(0, last))

    def render(self, sequence: Tensor) -> str:
        """Write a sequence ``[L]`` as characters; "_" is the mask, "?" any other id that is no symbol."""
        names = {**dict(enumerate(self.symbols)), self.mask_token_id: MASK_CHARACTER}
        return "".join(names.get(token, "?") for token in sequence.tolist())

    def parse(self, texts: Sequence[str]) -> Tensor:
        """Read what `render` wrote; white space is skipped.

        Args:
            texts: one sequence each.

        Returns:
            int64 ``[B, L]``.

        Raises:
            ValueError: if a character is no symbol, or a text has another length than the task's sequences.
        """
        ids = {**{symbol: token for token, symbol in enumerate(self.symbols)}, MASK_CHARACTER: self.mask_token_id}
        rows = []
        for text in texts:
            characters = "".join(text.split())
            unknown = sorted(set(characters) - set(ids))
            if unknown or len(characters) != self.length:
                found = f"the character {unknown[0]!r}" if unknown else f"{len(characters)} characters"
                raise ValueError(
                    f"{text!r} must be {self.length} of the characters {self.symbols + MASK_CHARACTER!r}, got {found}"
                )
            rows.append([ids[character] for character in characters])
        return torch.tensor(rows, dtype=torch.long).view(-1, self.length)
