"""Ancestral sampling of masked diffusion."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..process import UnmaskingOrder, check_unmasking_order
from .grid import drawn_positions, walk_grid
from .options import GridOptions
from .state import SamplerState
from .trajectory import Recorder


@dataclass(frozen=True, kw_only=True)
class AncestralSampler(GridOptions):
    """The reverse process of MDLM (arXiv 2406.07524).

    In the step from ``t`` to ``s`` each masked token is revealed with probability
    ``(alpha_s - alpha_t) / (1 - alpha_t)`` and only then drawn from the denoiser. All unmasking draws are made before
    the first step; logits are computed for the revealed positions alone, in sequences that reveal any. A last step that
    ends at 0 reveals all that is left, so there is no extra pass.

    Args:
        order: "random", the reverse process: each mask is revealed at a time of its own; or "strided": masks that share
            a step lie ``num_steps`` apart, so that neighbours are not drawn independently of one another (see
            `Stride`).

    The other options are those of `GridOptions` and `SamplerOptions`.

    Raises:
        ValueError: if the order is unknown.

    Examples:
        >>> sampler = AncestralSampler(process, num_steps=4, temperature=0.9)
        >>> out = sampler(teacher, shape=(2, 16), generator=generator)
        >>> out.sequences.shape, out.nfe, bool((out.sequences == 8).any())
        (torch.Size([2, 16]), 4, False)
    """

    order: UnmaskingOrder = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unmasking_order(self.order)

    def fill(self, state: SamplerState, recorder: Recorder) -> None:
        positions = drawn_positions(state, self.times, self.order)

        def reverse_step(step: int, t: Tensor, s: Tensor) -> None:
            state.reveal(positions[step], t, s, step)

        walk_grid(self, state, reverse_step, recorder, left=positions[-1])
