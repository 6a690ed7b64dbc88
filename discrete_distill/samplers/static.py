"""A few-step sampler as one fixed sequence of operations, which a GPU replays as a graph.

Shape suffixes: N all positions of the batch, K steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Generator, Tensor

from ..canvas import Canvas
from ..checks import check_generator
from ..process import Denoiser
from ..process.denoiser import check_ids
from .ancestral import AncestralSampler
from .output import SamplerOutput
from .rows import Rows
from .run import Run

AutocastSetting = tuple[bool, torch.dtype]


class StaticSampler:
    """An `AncestralSampler` in which no shape depends on data and nothing waits for the device.

    How many rows a step reveals is binomial, so each step has room for the mean and six standard deviations; padding
    passes the head and is not drawn. Where that is not enough (seen when the trajectory has ended), the plain sampler
    draws the batch again from the same seed. So the tokens are those of ``sampler(denoiser, shape, generator=...)``,
    always.

    On CUDA the whole trajectory is captured as a graph on the first call and replayed from then on: the seed is a
    device tensor. A call under another autocast setting captures the graph again. Elsewhere the same operations run one
    by one.

    Args:
        sampler: what is replayed.
        denoiser: its parameters may change between calls, in place.
        shape: ``(B, L)``; unconditional samples of one shape.
        device: where the denoiser is.
        capture: capture a CUDA graph; by default on CUDA.

    Raises:
        TypeError: if the sampler is no `AncestralSampler`.
        ValueError: if the sampler is asked for what needs the host in between (``check``, ``progress``) or for
            guidance, or a graph is to be captured without CUDA.
    """

    def __init__(
        self,
        sampler: AncestralSampler,
        denoiser: Denoiser,
        shape: tuple[int, int],
        *,
        device: torch.device | str = "cpu",
        capture: bool | None = None,
    ) -> None:
        if type(sampler) is not AncestralSampler:
            raise TypeError(
                f"an AncestralSampler is replayed, got {type(sampler).__name__}, whose rows depend on more than coins"
            )
        if sampler.cfg_scale != 1.0:
            raise ValueError(
                f"cfg_scale = {sampler.cfg_scale} guides by a prompt or a condition, and a StaticSampler has neither; "
                "leave it at 1"
            )
        if sampler.progress:
            raise ValueError("progress=True shows single steps, and a graph is replayed as a whole; leave it out")
        check_ids(denoiser, sampler.process.mask_token_id)
        if sampler.check:
            raise ValueError("check=True looks at logits in every step, which waits for the device; leave it out")
        self.sampler, self.denoiser, self.shape = sampler, denoiser, shape
        self.device = torch.device(device)
        self.capture = self.device.type == "cuda" if capture is None else capture
        if self.capture and self.device.type != "cuda":
            raise ValueError(f"a graph is captured on CUDA, and the device is {self.device}; pass capture=False")
        self.canvas = Canvas(sampler.process, shape, device=self.device, generator=Generator())
        self.seed = self.canvas.seed.clone()
        times = sampler.times
        self.ends = torch.tensor([*times, 0.0], device=self.device)
        self.removes = times[-1] > 0.0 and sampler.noise_removal != "none"
        self.reveal_probabilities = [
            float(sampler.process.unmask_probability(torch.tensor(t), torch.tensor(s))) for t, s in pairwise(times)
        ]
        self.capacities = row_capacities(self.reveal_probabilities, shape[0] * shape[1])
        self.room = torch.tensor(self.capacities, device=self.device)
        self.calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: tuple[Tensor, Tensor, Tensor] | None = None
        self._captured_under: AutocastSetting | None = None

    @torch.no_grad()
    def __call__(self, generator: Generator | None = None) -> SamplerOutput:
        """Draw ``shape`` sequences; the generator is drawn from once, as by the sampler itself."""
        check_generator(generator)
        place = generator.device if generator is not None else "cpu"
        self.seed.copy_(torch.randint(2**63 - 1, (), generator=generator, device=place))
        z, log_probs, overflow = self._replay() if self.capture else self.trajectory()
        if bool(overflow):
            return self._plain()
        run = Run(self.canvas_of(z, log_probs), self.denoiser, self.sampler.token_law, {})
        run.nfe = self.calls
        return run.finish(None)

    def canvas_of(self, z: Tensor, log_probs: Tensor) -> Canvas:
        """A canvas in the given state."""
        canvas = copy.copy(self.canvas)
        canvas.z, canvas.log_probs, canvas.seed = z.clone(), log_probs.clone(), self.seed
        return canvas

    def trajectory(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, their log-probabilities, and whether a step had too little room: device tensors, without a wait."""
        canvas = copy.copy(self.canvas)
        canvas.seed = self.seed
        run = Run(canvas, self.denoiser, self.sampler.token_law, {}, chunk_rows=self.sampler.chunk_rows, static=True)
        step_of_N = self._step_of_each(canvas)
        order_N = step_of_N.argsort(stable=True)
        numbers = torch.arange(len(self.capacities), device=self.device)
        counts = (step_of_N == numbers[:, None]).sum(1)
        starts = counts.cumsum(0) - counts
        for step, capacity in enumerate(self.capacities):
            last = step == len(self.capacities) - 1
            if last and not self.removes:
                break
            slots = torch.arange(capacity, device=self.device)
            # Room beyond the rows of this step holds those of the next, which are not drawn yet: all differ.
            index = order_N[(starts[step] + slots) % len(order_N)]
            rows = Rows(index, None, index, slots < counts[step])
            t, s = (self.ends[step + i].expand(canvas.batch) for i in (0, 1))
            run.reveal(rows, t, s, step, greedy=last and self.sampler.noise_removal == "greedy")
        self.calls = run.nfe
        overflow = (counts > self.room)[: None if self.removes else -1].any()
        return canvas.z, canvas.log_probs, overflow

    def _step_of_each(self, canvas: Canvas) -> Tensor:
        """The step that reveals each position, int64 ``[N]``; the number of steps where none does."""
        step_of_BL = torch.full_like(canvas.z, len(self.reveal_probabilities))
        for step in reversed(range(len(self.reveal_probabilities))):
            probability = self.sampler.process.unmask_probability(self.ends[step], self.ends[step + 1])
            step_of_BL = torch.where(canvas.coins(step, probability.expand(canvas.batch)), step, step_of_BL)
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
            self.trajectory()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.trajectory()
        return graph, outputs

    def _plain(self) -> SamplerOutput:
        run = self.sampler.begin(self.denoiser, self.shape, device=self.device, generator=Generator())
        run.canvas.seed = self.seed.clone()
        out = self.sampler.fill(run, return_history=False, callback=None)
        out.nfe, out.network_evaluations = out.nfe + self.calls, out.network_evaluations + self.calls
        return out


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
    """Room for the rows of each step, and for those that no step reveals: mean, six standard deviations, and four."""
    capacities, hidden = [], 1.0
    for probability in [*reveal_probabilities, 1.0]:
        share = hidden * probability
        spread = 6.0 * math.sqrt(positions * share * (1.0 - share))
        capacities.append(min(positions, math.ceil(positions * share + spread) + 4))
        hidden *= 1.0 - probability
    return capacities
