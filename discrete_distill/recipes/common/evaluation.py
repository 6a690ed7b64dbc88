"""What every evaluation is made of: samplers with all but steps, temperature and seed decided, drawn and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor

from ...checks import check_all_counts, check_count, check_number
from ...evaluation import (
    Estimate,
    Judge,
    generative_perplexity,
    mean_figures,
    measure_between_samples,
    measure_diversity,
    measure_frontier,
)
from ...models import TrunkDiscriminator
from ...process import Denoiser, MaskedDiffusion, UnmaskingOrder
from ...samplers import Frame, RGASampler, SamplerOutput
from ...training import fold_seed
from .plain_sampler import plain_sampler
from .sharded import SharedJudge, draw_in_shares

RESULTS_FILE = "evaluation.json"


@dataclass(kw_only=True)
class EvaluateConfig:
    """What is measured.

    Args:
        num_samples: samples for each seed.
        seeds: seeds of sampling.
        steps: steps at which teacher and student are sampled at temperature 1.
        guided_steps: steps at which the student is sampled with RGAS, out of ``steps``.
        frontier_steps: steps at which methods are compared over temperatures.
        teacher_frontier_steps: further steps of the teacher alone, compared with the student at ``frontier_steps``.
        teacher_temperatures: of the teacher's frontier.
        student_temperatures: of the student's.
        num_candidates: M of RGAS; at N steps it costs N (M + 1) network evaluations.
        rerank_scale: multiplies the discriminator's scores; 1 resamples towards the text, more prefers the best.
        tilt_fraction: fraction of steps that tilt (paper: 0.5); 0 re-ranks at every step.
        batch_size: sequences sampled at once.
        shown: samples of each method in the report.
    """

    num_samples: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    guided_steps: tuple[int, ...] = (8,)
    frontier_steps: int = 8
    teacher_frontier_steps: tuple[int, ...] = (32, 64)
    teacher_temperatures: tuple[float, ...] = (0.8, 0.9, 1.0)
    student_temperatures: tuple[float, ...] = (0.8, 0.9, 1.0, 1.1)
    num_candidates: int = 4
    rerank_scale: float = 1.0
    tilt_fraction: float = 0.0
    batch_size: int = 64
    shown: int = 2

    def __post_init__(self) -> None:
        check_all_counts(self, "num_samples", "frontier_steps", "num_candidates", "batch_size", flag="--evaluate")
        check_count("--evaluate.shown", self.shown, minimum=0)
        for name in ("steps", "guided_steps", "teacher_frontier_steps"):
            for value in getattr(self, name):
                check_count(f"--evaluate.{name.replace('_', '-')}", value)
        for name in ("seeds", "steps", "teacher_temperatures", "student_temperatures"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(
                    f"--evaluate.{name.replace('_', '-')} needs one or more different values, got {list(values)}"
                )
        for temperature in (*self.teacher_temperatures, *self.student_temperatures):
            check_number("--evaluate temperatures", temperature, exclusive_minimum=0.0)
        check_number("--evaluate.rerank-scale", self.rerank_scale, minimum=0.0)
        check_number("--evaluate.tilt-fraction", self.tilt_fraction, minimum=0.0, maximum=1.0)

    @property
    def teacher_steps(self) -> tuple[int, ...]:
        """Steps of the teacher's frontiers, those at which it is compared with the student first."""
        return tuple(dict.fromkeys((self.frontier_steps, *self.teacher_frontier_steps)))

    def network_evaluations(self, *, guided: bool = False, frontiers: bool = True) -> float:
        """Passes of one sequence through one network to draw all samples of teacher and student.

        Args:
            guided: whether samples are drawn with RGAS as well.
            frontiers: whether teacher and student are compared over temperatures.
        """
        plain = {(who, steps, 1.0) for who in ("teacher", "student") for steps in self.steps}
        if frontiers:
            plain |= {("teacher", steps, each) for steps in self.teacher_steps for each in self.teacher_temperatures}
            plain |= {("student", self.frontier_steps, each) for each in self.student_temperatures}
        passes = sum(steps for _, steps, _ in plain)
        if guided:
            re_ranked = {(steps, 1.0) for steps in self.guided_steps}
            re_ranked |= {(self.frontier_steps, each) for each in self.student_temperatures} if frontiers else set()
            passes += (self.num_candidates + 1) * sum(steps for steps, _ in re_ranked)
        return float(passes * self.num_samples * len(self.seeds))

    def guided_sampler(
        self,
        process: MaskedDiffusion,
        discriminator: TrunkDiscriminator,
        steps: int,
        temperature: float,
        order: UnmaskingOrder = "random",
    ) -> RGASampler:
        """RGAS as it is measured."""
        return RGASampler(
            process,
            reward=discriminator,
            num_steps=steps,
            num_candidates=self.num_candidates,
            rerank_scale=self.rerank_scale,
            tilt_fraction=self.tilt_fraction,
            temperature=temperature,
            order=order,
        )


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler of one network, with everything but steps, temperature and seed decided.

    Attributes:
        name: in tables, and of the samples that are kept.
        draw: ``draw(steps, temperature, shape, generator)``.
    """

    name: str
    draw: Callable[[int, float, tuple[int, int | Frame], Generator], SamplerOutput]


class Evaluation:
    """Draws and judges samples of the samplers; every set of samples is drawn once.

    Args:
        config: what is measured.
        process: mask and schedule.
        judge: of perplexity.
        accelerator: device, precision and processes.
        length: tokens of a sample, or a `Frame` of fixed tokens around them.
        reference: held-out data for reverse perplexity, int64 ``[M, L]``; None to leave it out.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        process: MaskedDiffusion,
        judge: Judge,
        accelerator: Accelerator,
        length: int | Frame,
        *,
        reference: Tensor | None = None,
    ) -> None:
        self.reference = reference
        self.config = config
        self.process = process
        self.judge = SharedJudge(judge)
        self.accelerator = accelerator
        self.length = length
        self.precision = "bf16 network, fp32 draw" if accelerator.mixed_precision == "bf16" else "fp32"
        self.drawn: dict[tuple[str, int, float, int], SamplerOutput] = {}

    def plain(self, name: str, denoiser: Denoiser, order: UnmaskingOrder = "random") -> SamplerSpec:
        """Ancestral sampling; see `plain_sampler`."""

        def draw(steps: int, temperature: float, shape: tuple[int, int | Frame], generator: Generator) -> SamplerOutput:
            sampler = plain_sampler(
                self.process, denoiser, shape[1], num_steps=steps, temperature=temperature, order=order
            )
            return sampler(denoiser, shape, generator=generator, device=self.accelerator.device)

        return SamplerSpec(name, draw)

    def guided(
        self,
        name: str,
        denoiser: Denoiser,
        discriminator: TrunkDiscriminator,
        order: UnmaskingOrder = "random",
    ) -> SamplerSpec:
        """RGAS."""

        def draw(steps: int, temperature: float, shape: tuple[int, int | Frame], generator: Generator) -> SamplerOutput:
            sampler = self.config.guided_sampler(self.process, discriminator, steps, temperature, order)
            return sampler(denoiser, shape, generator=generator, device=self.accelerator.device)

        return SamplerSpec(name, draw)

    def sample(self, spec: SamplerSpec, steps: int, temperature: float, seed: int) -> SamplerOutput:
        """``num_samples`` sequences; the same call gives the same ones."""
        key = (spec.name, steps, temperature, seed)
        if key not in self.drawn:

            def draw(start: int) -> SamplerOutput:
                size = min(self.config.batch_size, self.config.num_samples - start)
                generator = Generator(device=self.accelerator.device).manual_seed(fold_seed("sample", seed, start))
                with self.accelerator.autocast():
                    return spec.draw(steps, temperature, (size, self.length), generator)

            starts = list(range(0, self.config.num_samples, self.config.batch_size))
            self.drawn[key] = join_outputs(draw_in_shares(starts, draw))
        return self.drawn[key]

    def by_steps(self, spec: SamplerSpec, steps: int) -> dict[str, Any]:
        """One line of the table: all seeds together, at temperature 1."""
        outputs = [self.sample(spec, steps, 1.0, seed) for seed in self.config.seeds]
        sequences = torch.cat([out.sequences for out in outputs])
        judged = generative_perplexity(
            sequences, self.judge, precision=self.precision, mask_token_id=self.process.mask_token_id
        )
        return {
            "method": spec.name,
            "steps": steps,
            "nfe": outputs[0].nfe,
            "network_evaluations": outputs[0].network_evaluations,
            "nats_per_token": judged.nats_per_token,
            "standard_error": judged.standard_error,
            "perplexity": judged.perplexity,
            "diversity": asdict(measure_diversity(sequences)),
            "between_samples": between_seeds([out.sequences for out in outputs]),
        }

    def timed(self, spec: SamplerSpec, steps: int, batch: int) -> Callable[[], Tensor]:
        """A call that draws one batch at temperature 1, for `measure_speeds`."""

        def draw() -> Tensor:
            generator = Generator(device=self.accelerator.device).manual_seed(0)
            with self.accelerator.autocast():
                return spec.draw(steps, 1.0, (batch, self.length), generator).sequences

        return draw

    def frontier(self, spec: SamplerSpec, steps: int, temperatures: tuple[float, ...]) -> dict[str, Any]:
        """The curve over temperatures, all seeds."""
        measured = measure_frontier(
            lambda temperature, seed: self.sample(spec, steps, temperature, seed).sequences,
            self.judge,
            method=f"{spec.name}, {steps} steps",
            temperatures=temperatures,
            seeds=self.config.seeds,
            precision=self.precision,
            mask_token_id=self.process.mask_token_id,
            data=self.reference,
        )
        return measured.to_dict()


def join_outputs(outputs: list[SamplerOutput]) -> SamplerOutput:
    """Batches of one sampler as one; costs are those of a batch."""
    return SamplerOutput(
        sequences=torch.cat([out.sequences for out in outputs]),
        nfe=max(out.nfe for out in outputs),
        network_evaluations=max(out.network_evaluations for out in outputs),
        log_probs=torch.cat([out.log_probs for out in outputs]),
        num_tokens=torch.cat([out.num_tokens for out in outputs]),
        commits=max(out.commits for out in outputs),
    )


def between_seeds(sets: list[Tensor], reference: Tensor | None = None) -> dict[str, Estimate]:
    """Figures between the samples of a seed, mean over seeds: sets as large as those of data and of a frontier.

    Returns:
        Figures by name; empty where a seed has a single sample.
    """
    if min(len(each) for each in sets) < 2:
        return {}
    return mean_figures([measure_between_samples(each, reference).figures() for each in sets])


def between_samples_of_data(data: Tensor, reference: Tensor, count: int) -> dict[str, Any]:
    """Figures between ``count`` sequences of data, as of a set of samples; empty where there are fewer than two."""
    chosen = data[:: max(1, len(data) // count)][:count]
    return measure_between_samples(chosen, reference).figures() if len(chosen) > 1 else {}
