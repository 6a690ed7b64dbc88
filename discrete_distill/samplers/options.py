"""The options that all samplers share, in one place: how tokens are drawn, on which grid of times, what is checked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import pairwise
from numbers import Real
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..checks import check_choice, check_count, check_flag, check_number
from ..process import MaskedDiffusion
from ..process.blocks import reads_blocks
from ..process.forbidden import checked_forbidden_ids
from .call import Sampler, SamplerCall
from .filtering import TokenDistribution
from .output import SamplerOutput
from .state import SamplerState
from .trajectory import Recorder

Grid = Literal["uniform", "cosine"] | Sequence[float] | Tensor


@dataclass(frozen=True)
class SamplerOptions(Sampler):
    """Options shared by all samplers.

    Args:
        process: mask and schedule.
        temperature: of the tokens (not of the unmasking draws); 1 is the denoiser's own distribution.
        top_k: draw among the ``k`` most likely tokens only, renormalised.
        top_p: draw among the fewest tokens that hold at least this probability, renormalised (arXiv 1904.09751); of the
            distribution after temperature and ``top_k``.
        forbidden_token_ids: ids that are never drawn, in addition to those of the process; the distribution is
            renormalised.
        precision: of the draw: ``torch.float32``, whose tails are summed in fp64, or ``torch.float64`` throughout.
        cfg_scale: ``w`` of classifier-free guidance, ``log p = w log p(x | c) + (1 - w) log p(x)``, renormalised; 1 is
            the conditional distribution and one call, everything else two calls a step, both counted.
        chunk_rows: rows of vocabulary logits held at once; no token depends on it.
        static: positions that depend on logits are padded to a fixed number, so that no step waits for the device
            to say how many there are (padding costs the head, and no draw). By default on an accelerator.
        progress: show a progress bar over the steps.
        check: look at all logits in every step, and name the first bad position at once; otherwise they are reported
            when the sampler has ended, without waiting for the device in between.

    Raises:
        TypeError: if an option has a wrong type.
        ValueError: if a number is out of range.

    Examples:
        >>> sampler = FirstHittingSampler(process, temperature=0.8, forbidden_token_ids=(1, 2, 3, 4, 5, 6, 7))
        >>> sampler(teacher, (1, 4), generator=generator).sequences.tolist()
        [[0, 0, 0, 0]]
    """

    process: MaskedDiffusion
    _: KW_ONLY
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    forbidden_token_ids: Sequence[int] = ()
    precision: torch.dtype = torch.float32
    cfg_scale: float = 1.0
    chunk_rows: int = 384
    static: bool | None = None
    progress: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.process, MaskedDiffusion):
            raise TypeError(f"process must be a MaskedDiffusion, got {type(self.process).__name__}")
        check_number("temperature", self.temperature, exclusive_minimum=0.0)
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        if self.top_p is not None:
            check_number("top_p", self.top_p, exclusive_minimum=0.0, maximum=1.0)
        ids = checked_forbidden_ids(self.forbidden_token_ids, self.process.mask_token_id)
        object.__setattr__(self, "forbidden_token_ids", ids)
        if self.precision not in (torch.float32, torch.float64):
            raise ValueError(f"precision is torch.float32 or torch.float64, got {self.precision}")
        check_number("cfg_scale", self.cfg_scale)
        check_count("chunk_rows", self.chunk_rows)
        for name in ("progress", "check", *(("static",) if self.static is not None else ())):
            check_flag(name, getattr(self, name))

    @property
    def reads_whole_sequences(self) -> bool:
        """Whether networks other than the denoiser read the sequences."""
        return False

    @property
    def token_distribution(self) -> TokenDistribution:
        """How a token is drawn from a row of logits."""
        return TokenDistribution(self.process.mask_token_id, self.temperature, self.top_k, self.top_p, self.precision)

    def begin(self, call: SamplerCall) -> SamplerState:
        """The state before the first step.

        Raises:
            TypeError: as `SamplerState`.
            ValueError: as `SamplerState`; or if ``check`` and no sequence has a mask to fill in.
        """
        process = self.process
        if self.forbidden_token_ids:
            process = replace(process, forbidden_token_ids=(*process.forbidden_token_ids, *self.forbidden_token_ids))
        state = SamplerState(
            process,
            call.denoiser,
            **call.inputs,
            token_distribution=self.token_distribution,
            cfg_scale=self.cfg_scale,
            chunk_rows=self.chunk_rows,
            check=self.check,
        )
        state.static = state.tokens.device.type != "cpu" if self.static is None else self.static
        if self.check and not bool(state.generation_mask.any()):
            raise ValueError(
                f"no sequence holds the mask token {self.process.mask_token_id} at a real position, so there is "
                "nothing to draw; is it the process's mask_token_id?"
            )
        return state

    def draw(self, call: SamplerCall) -> SamplerOutput:
        state, network = self.begin(call), cast(Any, call.denoiser)
        if reads_blocks(network) and network.block_length < state.length:
            warnings.warn(
                f"a {type(network).__name__} reads by blocks of {network.block_length}, each behind finished ones, and "
                f"is shown whole sequences of {state.length}: take BlockwiseSampler(sampler, "
                f'block_length={network.block_length}, align="start", cache="exact")',
                stacklevel=3,
            )
        return self.finish(state, call)

    def finish(self, state: SamplerState, call: SamplerCall) -> SamplerOutput:
        """Take all steps from a state, and return what the call returns."""
        recorder = Recorder(state, return_history=call.return_history, callback=call.callback, progress=self.progress)
        self.fill(state, recorder)
        recorder.close()
        return state.finish(recorder.history)

    def fill(self, state: SamplerState, recorder: Recorder) -> None:
        """Take the steps of the sampler from a state."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GridOptions(SamplerOptions):
    """Options of samplers that take steps between given times.

    Args:
        num_steps: steps; one in which nothing is revealed anywhere costs no call.
        grid: "uniform" in time; "cosine", ``t_k = cos(pi k / 2 K)``, which takes short steps near all mask; or the
            times themselves, descending, of which there is one more than steps (``num_steps`` may then be left out).
        end: last time of a "uniform" or "cosine" grid. A grid that ends at 0 leaves no mask.
        noise_removal: what becomes of masks that a grid with an ``end`` above 0 leaves: one more pass that draws them
            ("sample") or takes the most likely tokens ("greedy"), counted when there are any; or nothing ("none").

    Raises:
        ValueError: if a number is out of range, times do not descend, or noise removal is chosen where a grid ends
            at 0 and leaves nothing.

    Examples:
        >>> AncestralSampler(process, num_steps=4).times
        [1.0, 0.75, 0.5, 0.25, 0.0]
        >>> AncestralSampler(process, num_steps=2, grid="cosine", end=0.1).times
        [1.0, 0.73..., 0.1]
    """

    num_steps: int = 16
    grid: Grid = "uniform"
    end: float = 0.0
    noise_removal: Literal["sample", "greedy", "none"] = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_steps", self.num_steps)
        check_number("end", self.end, minimum=0.0, exclusive_maximum=1.0)
        check_choice("noise_removal", self.noise_removal, ("sample", "greedy", "none"))
        times = self.times
        default = GridOptions.__dataclass_fields__["num_steps"].default
        if not isinstance(self.grid, str) and self.num_steps not in (default, len(times) - 1):
            raise ValueError(
                f"the grid has {len(times) - 1} steps, and num_steps is {self.num_steps}; leave num_steps out"
            )
        if self.noise_removal != "sample" and times[-1] == 0.0:
            raise ValueError(
                f'noise_removal="{self.noise_removal}" has nothing to do on a grid that ends at 0, where no mask is '
                "left; pass end=1e-5 for instance"
            )

    @property
    def times(self) -> list[float]:
        """The times of the grid, from the first to the last.

        Raises:
            ValueError: if they do not descend strictly within ``[0, 1]``.
        """
        if isinstance(self.grid, str):
            return named_grid(self.grid, self.num_steps, self.end)
        return checked_grid(self.grid, self.end)


def named_grid(name: str, num_steps: int, end: float) -> list[float]:
    """``num_steps + 1`` times from 1 to ``end``."""
    if name == "uniform":
        return [end + (1.0 - end) * (num_steps - step) / num_steps for step in range(num_steps + 1)]
    if name == "cosine":
        cosines = [math.cos(0.5 * math.pi * step / num_steps) for step in range(num_steps)]
        return [end + (1.0 - end) * cosine for cosine in cosines] + [end]
    raise ValueError(f'grid is "uniform", "cosine" or a list of times, got {name!r}')


def checked_grid(grid: Sequence[float] | Tensor, end: float) -> list[float]:
    """The times that a user gives."""
    if isinstance(grid, Tensor):
        grid = grid.tolist()
    if not isinstance(grid, Sequence):
        raise TypeError(f'grid is "uniform", "cosine" or a sequence of times, got {grid!r}')
    for time in grid:
        if isinstance(time, bool) or not isinstance(time, Real):
            raise TypeError(f"a grid holds real numbers, got {time!r}")
    times = [float(time) for time in grid]
    if len(times) < 2:
        raise ValueError(f"a grid needs two times or more, got {times}")
    outside = [time for time in times if not 0.0 <= time <= 1.0]
    if outside:
        raise ValueError(f"times lie in [0, 1], where 1 is all mask and 0 is data; got {outside[0]} in {times}")
    for number, (t, s) in enumerate(pairwise(times)):
        if not t > s:
            raise ValueError(
                f"times descend from 1 to 0; step {number} goes from {t} to {s}. Reverse the grid, if it ascends"
            )
    if end != 0.0:
        raise ValueError(f"a grid of given times ends where they end; leave out end = {end}")
    return times
