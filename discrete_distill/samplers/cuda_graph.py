"""A few-step sampler as one fixed sequence of operations, which a GPU replays as a graph.

Shape suffixes: N all positions of the batch, K steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise

import torch
from torch import Generator, Tensor

from .. import draws
from ..checks import check_generator
from ..process import Denoiser
from ..process.denoiser import device_of
from .ancestral import AncestralSampler
from .call import Sampler, SamplerCall
from .grid import unmask_flags
from .output import SamplerOutput
from .positions import Positions
from .prompts import Frame
from .state import SamplerState
from .strided import stride_of

AutocastSetting = tuple[bool, torch.dtype]


@dataclass(frozen=True)
class CudaGraphSampler(Sampler):
    """An `AncestralSampler` in which no shape depends on data and nothing waits for the device.

    The number of positions that a step reveals is binomial, so each step has room for the mean and six standard
    deviations; padding passes the head and is not drawn. Where that is not enough (seen when the trajectory has ended),
    the plain sampler draws the batch again from the same seed. The tokens are therefore always those of
    ``sampler(denoiser, shape, generator=...)``.

    On CUDA the whole trajectory is captured as a graph on the first call and replayed from then on: the seed is a
    device tensor, and the denoiser's parameters may change between calls, in place. Another denoiser, shape, device or
    autocast setting captures the graph again. Elsewhere the same operations run one by one.

    Samples are unconditional, and single steps are not shown: of the arguments of a call only ``shape``, ``generator``
    and ``device`` are honoured, and all others are refused.

    Args:
        sampler: what is replayed.
        capture: capture a CUDA graph; by default on CUDA.

    Raises:
        TypeError: if the sampler is no `AncestralSampler`.
        ValueError: if the sampler has options that need the host in between (``check``, ``progress``), for shapes
            that depend on data, or for guidance; when called, if a graph is to be captured without CUDA, or an argument
            is not honoured.

    Examples:
        >>> sampler = AncestralSampler(process, num_steps=4)
        >>> seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
        >>> fast = CudaGraphSampler(sampler)(teacher, (2, 16), generator=seeds[0])
        >>> torch.equal(fast.sequences, sampler(teacher, (2, 16), generator=seeds[1]).sequences)
        True
    """

    sampler: AncestralSampler
    _: KW_ONLY
    capture: bool | None = None
    _made: list[FixedTrajectory] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.sampler) is not AncestralSampler:
            raise TypeError(
                f"an AncestralSampler is replayed, got {type(self.sampler).__name__}, whose positions depend on "
                "more than unmask_draws"
            )
        if self.sampler.cfg_scale != 1.0:
            raise ValueError(
                f"cfg_scale = {self.sampler.cfg_scale} guides by a prompt or a condition, and a CudaGraphSampler has "
                "neither; leave it at 1"
            )
        if self.sampler.progress:
            raise ValueError("progress=True shows single steps, and a graph is replayed as a whole; leave it out")
        if self.sampler.check:
            raise ValueError("check=True looks at logits in every step, which waits for the device; leave it out")
        if self.sampler.static is False:
            raise ValueError("static=False has shapes that depend on data, which no graph has; leave it out")

    def draw(self, call: SamplerCall) -> SamplerOutput:
        _refuse_arguments(call)
        generator = call.inputs["generator"]
        check_generator(generator)
        made = self.trajectory(call.denoiser, call.inputs["shape"], device=call.inputs["device"], generator=generator)
        return made.draw(generator)

    def trajectory(
        self,
        denoiser: Denoiser,
        shape: tuple[int, int | Frame] | None,
        *,
        device: torch.device | str | None = None,
        generator: Generator | None = None,
    ) -> FixedTrajectory:
        """The operations of a call, those of the last call where denoiser, shape and device are the same."""
        device = device_of(denoiser, generator) if device is None else torch.device(device)
        made = self._made[0] if self._made else None
        if made is None or not made.serves(denoiser, shape, device):
            self._made.clear()  # Frees the memory of the previous graph first.
            made = FixedTrajectory(self.sampler, denoiser, shape, device, capture=self.capture)
            self._made.append(made)
        return made


def _refuse_arguments(call: SamplerCall) -> None:
    given = {**call.inputs, "callback": call.callback, "return_history": call.return_history}
    shape = given["shape"]
    if isinstance(shape, (tuple, list)) and any(isinstance(each, Frame) for each in shape):
        raise ValueError(
            f"shape = {shape} has a frame of fixed tokens, which a CudaGraphSampler does not honour; give the "
            "length, or call the plain sampler"
        )
    refused = ["x_init", "attention_mask", "generation_mask", "model_kwargs", "callback"]
    refused = [name for name in refused if given[name] is not None]
    refused += [name for name in ("first_row", "return_history") if given[name]]
    for name in refused:
        raise ValueError(
            f"{name} is not honoured by a CudaGraphSampler, which draws unconditional samples as a whole; leave it "
            "out, or call the plain sampler"
        )


class FixedTrajectory:
    """The operations of an `AncestralSampler` for one denoiser, shape and device, in shapes that are known beforehand.

    Args:
        sampler: whose tokens are drawn.
        denoiser: its parameters may change between calls, in place.
        shape: ``(B, L)``.
        device: where the denoiser is.
        capture: capture a CUDA graph; by default on CUDA.

    Raises:
        ValueError: if a graph is to be captured without CUDA, or the denoiser does not know the mask.
    """

    def __init__(
        self,
        sampler: AncestralSampler,
        denoiser: Denoiser,
        shape: tuple[int, int | Frame] | None,
        device: torch.device,
        *,
        capture: bool | None = None,
    ) -> None:
        self.sampler, self.denoiser, self.shape, self.device = sampler, denoiser, shape, device
        self.capture = device.type == "cuda" if capture is None else capture
        if self.capture and device.type != "cuda":
            raise ValueError(f"a graph is captured on CUDA, and the device is {device}; pass capture=False")
        self.call = SamplerCall(denoiser, {"shape": shape, "device": device, "generator": Generator()})
        self.start = sampler.begin(self.call)
        self.start.static = True
        self.seed = self.start.seed.clone()
        times = sampler.times
        self.ends = torch.tensor([*times, 0.0], device=device)
        self.removes = times[-1] > 0.0 and sampler.noise_removal != "none"
        self.reveal_probabilities = [
            float(sampler.process.unmask_probability(torch.tensor(t), torch.tensor(s))) for t, s in pairwise(times)
        ]
        self.capacities = row_capacities(self.reveal_probabilities, self.start.tokens.numel())
        self.room = torch.tensor(self.capacities, device=device)
        self.calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: tuple[Tensor, Tensor, Tensor] | None = None
        self._captured_under: AutocastSetting | None = None

    def serves(self, denoiser: Denoiser, shape: tuple[int, int | Frame] | None, device: torch.device) -> bool:
        """Whether these are the operations of such a call."""
        return self.denoiser is denoiser and self.shape == shape and self.device == device

    def draw(self, generator: Generator | None) -> SamplerOutput:
        """Draw the batch; the generator is drawn from once, as by the sampler itself."""
        self.seed.copy_(draws.seed(device=self.device, generator=generator))
        tokens, log_probs, overflow = self._replay() if self.capture else self.run()
        if bool(overflow):
            return self._plain()
        state = copy.copy(self.start)
        state.tokens, state.log_probs, state.nfe = tokens.clone(), log_probs.clone(), self.calls
        return state.finish(None)

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, their log-probabilities, and whether a step had too little room: device tensors, without a wait."""
        state = copy.copy(self.start)
        state.seed = self.seed
        step_of_N = self._step_of_each(state)
        order_N = step_of_N.argsort(stable=True)
        numbers = torch.arange(len(self.capacities), device=self.device)
        counts = (step_of_N == numbers[:, None]).sum(1)
        starts = counts.cumsum(0) - counts
        for step, capacity in enumerate(self.capacities):
            last = step == len(self.capacities) - 1
            if last and not self.removes:
                break
            slots = torch.arange(capacity, device=self.device)
            # Room beyond the positions of this step holds those of the next, which are not drawn yet: all differ.
            index = order_N[(starts[step] + slots) % len(order_N)]
            positions = Positions(index, None, index, slots < counts[step])
            t, s = (self.ends[step + i].expand(state.batch) for i in (0, 1))
            state.reveal(positions, t, s, step, greedy=last and self.sampler.noise_removal == "greedy")
        self.calls = state.nfe
        overflow = (counts > self.room)[: None if self.removes else -1].any()
        return state.tokens, state.log_probs, overflow

    def _step_of_each(self, state: SamplerState) -> Tensor:
        """The step that reveals each position, int64 ``[N]``; the number of steps where none does."""
        num_steps = len(self.reveal_probabilities)
        step_of_BL = torch.full_like(state.tokens, num_steps)
        stride = stride_of(self.sampler.order, self.sampler.times)
        reveals, _ = unmask_flags(state, self.ends[: num_steps + 1], stride=stride)
        for step, flags in enumerate(reveals):
            step_of_BL = torch.where(flags, step, step_of_BL)
        return step_of_BL.flatten()

    def _replay(self) -> tuple[Tensor, Tensor, Tensor]:
        setting = autocast_setting(self.device)
        if self._graph is None or self._captured_under != setting:
            self._graph = self._outputs = None  # Frees the memory of the previous graph first.
            with torch.cuda.device(self.device), casting_anew(self.device):
                self._graph, self._outputs = self._capture()
            self._captured_under = setting
        self._graph.replay()
        assert self._outputs is not None
        return self._outputs

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor, Tensor]]:
        """A graph of the trajectory on the current device, after one warm-up, and the tensors it writes."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            self.run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.run()
        return graph, outputs

    def _plain(self) -> SamplerOutput:
        state = self.sampler.begin(self.call)
        state.seed = self.seed.clone()
        state.nfe = self.calls
        return self.sampler.finish(state, self.call)


def autocast_setting(device: torch.device) -> AutocastSetting:
    """Whether autocast is enabled on the device, and its dtype."""
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


@contextmanager
def casting_anew(device: torch.device) -> Iterator[None]:
    """The current autocast setting without its cache of cast weights.

    The cache is freed when the caller leaves autocast. A graph captured with it would read freed memory, and would not
    follow weights that change in place.
    """
    enabled, dtype = autocast_setting(device)
    torch.clear_autocast_cache()
    with torch.autocast(device.type, dtype, enabled=enabled, cache_enabled=False):
        yield


def row_capacities(reveal_probabilities: list[float], positions: int) -> list[int]:
    """Number of places for each step, and for what no step reveals: the mean, six standard deviations, and four."""
    capacities, hidden = [], 1.0
    for probability in [*reveal_probabilities, 1.0]:
        share = hidden * probability
        spread = 6.0 * math.sqrt(positions * share * (1.0 - share))
        capacities.append(min(positions, math.ceil(positions * share + spread) + 4))
        hidden *= 1.0 - probability
    return capacities
