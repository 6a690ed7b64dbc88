"""A batch of paths in parts, one after another, whose gradients add up to that of the whole batch.

Every part is drawn twice: without a graph, so that the rewards of the whole batch are known before the first gradient;
then along the same path with its graph. The memory is that of one part; the student's states are evaluated twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...distributed.collectives import mean_over_processes
from ..rollout import DrawnBatch

Draw = Callable[[Generator, Tensor | None], DrawnBatch]
"""``draw(generator, tokens)``: paths, along given tokens if they are given; see `DiDiInstruct.rollout`."""


@dataclass
class DrawnPart:
    """One part of a batch.

    Attributes:
        rollout: its paths, without a graph.
        generator: source of randomness of whatever else the part draws.
        draw: draws the paths.
        state: of the generator, before they were drawn.
    """

    rollout: DrawnBatch
    generator: Generator
    draw: Draw
    state: Tensor

    def again(self) -> DrawnBatch:
        """The same paths with their graph, where gradients are enabled. The part's generator stays as it is."""
        generator = Generator(device=self.generator.device)
        generator.set_state(self.state)
        return self.draw(generator, self.rollout.sequences)


def draw_part(draw: Draw, generator: Generator, *, keep_logits: bool) -> DrawnPart:
    """Draw the paths of a part without a graph."""
    state = generator.get_state()
    with torch.no_grad():
        rollout = draw(generator, None)
    return DrawnPart(rollout if keep_logits else rollout.without_logits(), generator, draw, state)


def tokens_per_part(rollouts: Sequence[DrawnBatch]) -> Tensor:
    """What the losses of the whole batch are averages over, such as the tokens that the student wrote, over its parts
    and processes: what each part's losses are divided by, if the mean of the parts' gradients is taken. All processes
    must call it, with as many parts.
    """
    total = torch.stack([rollout.num_counted() for rollout in rollouts]).sum().float()
    return mean_over_processes(total).clamp(min=1.0) / len(rollouts)
