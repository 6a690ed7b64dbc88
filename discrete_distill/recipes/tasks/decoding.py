"""How answers are decoded: samplers that reveal more or fewer tokens in an evaluation of the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ...evaluation.tasks import Prompts
from ...process import Denoiser, MaskedDiffusion
from ...samplers import (
    AncestralSampler,
    ConfidenceSampler,
    EntropyBoundedSampler,
    FirstHittingSampler,
    in_blocks_of,
)
from .settings import MeasureConfig


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A sampler with its setting.

    Attributes:
        name: of the kind.
        setting: what its speed depends on.
        sampler: of whole sequences, or of each block of a network that reads by blocks.
        num_steps: of a sampler with a grid; None where the network decides.
    """

    name: str
    setting: str
    sampler: Any
    num_steps: int | None = None


@dataclass(frozen=True)
class Decoded:
    """Answers, and the mean over sequences of the evaluations in which something of the sequence was revealed: what the
    sequence would cost alone.

    Attributes:
        sequences: int64 ``[B, L]``.
        nfe: evaluations of a sequence.
        commits: passes that kept the keys of a finished block.
    """

    sequences: Tensor
    nfe: float
    commits: int = 0


def decodings(process: MaskedDiffusion, config: MeasureConfig, length: int, num_blocks: int = 1) -> Iterator[Decoding]:
    """The decodings that are measured, slow to fast.

    Args:
        process: mask and schedule.
        config: what is measured.
        length: tokens of an answer.
        num_blocks: of an answer. They share the steps; numbers of steps below theirs are left out.
    """
    chosen = {min(forwards, length) for forwards in config.forwards if forwards >= num_blocks}
    steps = sorted(chosen | {length}, reverse=True)
    if "ancestral" in config.decodings:
        for num_steps in steps:
            # In as many steps as tokens exactly one is revealed in each, in random order.
            sampler: Any = FirstHittingSampler(process)
            if num_steps < length:
                sampler = AncestralSampler(process, num_steps=num_steps // num_blocks)
            yield Decoding(name="ancestral", setting=f"{num_steps} steps", sampler=sampler, num_steps=num_steps)
    for name in ("strided", "confidence"):
        for num_steps in steps if name in config.decodings else ():
            # One token a step is as many steps as the longest block has tokens, or more.
            in_block = num_steps if num_steps == length else -(-num_steps // num_blocks)
            sampler = ConfidenceSampler(process, num_steps=in_block)
            if name == "strided":
                sampler = AncestralSampler(process, num_steps=in_block, order="strided")
            yield Decoding(name=name, setting=f"{num_steps} steps", sampler=sampler, num_steps=num_steps)
    if "entropy-bounded" in config.decodings:
        for gamma in sorted(config.gammas):
            sampler = EntropyBoundedSampler(process, gamma=gamma)
            yield Decoding(name="entropy-bounded", setting=f"{gamma:g} nats", sampler=sampler)
    if "threshold" in config.decodings:
        for threshold in sorted(config.thresholds, reverse=True):
            sampler = ConfidenceSampler(process, threshold=threshold)
            yield Decoding(name="threshold", setting=f"above {threshold:g}", sampler=sampler)


def decode(decoding: Decoding, denoiser: Denoiser, prompts: Prompts, generator: Generator | None) -> Decoded:
    """Sample answers to prompts, block by block where the network reads so."""
    x_init, generation_mask = prompts
    sampler: Any = in_blocks_of(denoiser, decoding.sampler)
    out = sampler(denoiser, x_init=x_init, generation_mask=generation_mask, generator=generator, return_history=True)
    history_KBL = torch.stack(out.history)
    revealing_KB = (history_KBL[1:] != history_KBL[:-1]).any(2)
    return Decoded(out.sequences, float(revealing_KB.sum(0).float().mean()), out.commits)
