"""Distributions of samplers by enumeration of states, unmasking and token draws. Plain Python, unlike the library.

A state is a tuple of ids; a distribution is a dictionary from states (or states with something attached) to
probabilities.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

State = tuple[int, ...]
Distribution = dict[Any, float]
Moves = Callable[[Any], Iterable[tuple[float, Any]]]


class RandomNetwork:
    """Random logits at every position of every state, visible ones too; a table for each of ``times``, if given."""

    def __init__(self, vocab_size: int, length: int, seed: int, times: Iterable[float] | None = None) -> None:
        self.size, self.length = vocab_size + 1, length
        self.times = None if times is None else torch.tensor(list(times))
        self.time_conditioned = times is not None
        tables = 1 if self.times is None else len(self.times)
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(tables, self.size**length, length, self.size, generator=generator)

    def __call__(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
        place = (x * self.size ** torch.arange(self.length - 1, -1, -1)).sum(1)
        table = torch.zeros_like(place) if self.times is None else (t[:, None] - self.times).abs().argmin(1)
        return self.logits[table, place]


def probabilities(network: Any, state: State, t: float, mask: int, temperature: float = 1.0) -> list[list[float]]:
    """Of every id at every position, the mask's 0."""
    logits = network(torch.tensor([state]), torch.tensor([t]))[0].double() / temperature
    logits[:, mask] = -torch.inf
    return logits.softmax(-1).tolist()


def draws(rows: dict[int, list[float]]) -> Iterable[tuple[float, dict[int, int]]]:
    """All independent draws at the positions of ``rows``, with their probabilities."""
    places = list(rows)
    for tokens in itertools.product(*(range(len(rows[i])) for i in places)):
        probability = math.prod(rows[i][token] for i, token in zip(places, tokens, strict=True))
        if probability > 0.0:
            yield probability, dict(zip(places, tokens, strict=True))


def put(state: State, tokens: dict[int, int]) -> State:
    return tuple(tokens.get(i, token) for i, token in enumerate(state))


def advance(distribution: Distribution, moves: Moves) -> Distribution:
    after: Distribution = {}
    for state, probability in distribution.items():
        for share, target in moves(state):
            after[target] = after.get(target, 0.0) + probability * share
    return after


def as_tensor(distribution: Distribution, vocab_size: int, mask: int) -> Tensor:
    """Flattened distribution over words, in the order of `counts_of`; the mask may have any id."""
    words = [i for i in range(vocab_size + 1) if i != mask]
    length = len(next(iter(distribution)))
    return torch.tensor([distribution.get(state, 0.0) for state in itertools.product(words, repeat=length)]).double()


def masked_positions(state: State, mask: int) -> list[int]:
    return [i for i, token in enumerate(state) if token == mask]


def subsets(places: list[int], probability: dict[int, float]) -> Iterable[tuple[float, set[int]]]:
    """All outcomes of independent unmasking draws."""
    for heads in itertools.product((False, True), repeat=len(places)):
        share = math.prod(
            probability[i] if head else 1.0 - probability[i] for i, head in zip(places, heads, strict=True)
        )
        if share > 0.0:
            yield share, {i for i, head in zip(places, heads, strict=True) if head}
