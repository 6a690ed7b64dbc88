"""Who is compared: every method trained under the budget, and as something that draws samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from ...models import DiT
from ...samplers import SamplerOutput
from ...training import LoopConfig, TrainingLoop, flat_settings
from ..common.fingerprint import check_tokenizer, write_fingerprint
from ..common.stream_settings import stream_settings
from ..common.students import Trainee, save_student, weights_digest
from ..text.distill import Distillation, DistillConfig
from ..text.evaluate import Contestant, Evaluation
from ..text.pipeline import Pipeline
from .autoregressive import AutoregressiveConfig, AutoregressiveSampler, AutoregressiveTraining, load_autoregressive
from .budget import EvaluationCounter, counted_step, plan_steps, total_evaluations
from .settings import ComparisonConfig

MethodConfig = DistillConfig | AutoregressiveConfig


@dataclass(kw_only=True)
class Cost:
    """What training one student took.

    Attributes:
        steps: training steps.
        seconds: of the loop.
        network_evaluations: passes of one sequence through one network; a backward pass counts as two.
        guide_seconds: what fitting a guide to the finished student took on top; 0 without one.
    """

    steps: int
    seconds: float
    network_evaluations: float
    guide_seconds: float = 0.0


@dataclass(kw_only=True)
class Entry:
    """A line of the comparison.

    Attributes:
        name: in tables.
        contestants: one for each training seed; the seeds of sampling take turns.
        steps: at which it is measured.
        network: of the first training seed, for likelihoods.
    """

    name: str
    contestants: list[Contestant]
    steps: tuple[int, ...]
    network: nn.Module

    def sample(self, run: Evaluation, steps: int, temperature: float, seed: int) -> SamplerOutput:
        """What the training of this sampling seed's turn draws."""
        turn = run.config.seeds.index(seed) % len(self.contestants)
        return run.sample(self.contestants[turn], steps, temperature, seed)


class Training:
    """Trains the methods of a comparison into ``<run>/<method>/seed-<n>/``.

    Args:
        pipeline: of the run.
        config: of the comparison.
    """

    def __init__(self, pipeline: Pipeline, config: ComparisonConfig) -> None:
        self.pipeline = pipeline
        self.config = config

    def folder(self, name: str, seed: int) -> Path:
        """Of one training."""
        return self.pipeline.directory / name / f"seed-{seed}"

    def train(self, name: str, method: MethodConfig, teacher: DiT, seed: int) -> Cost:
        """Train one method with one seed, as long as the budget pays for; what is finished is not done again."""
        folder = self.folder(name, seed)
        make = self._maker(method, teacher, seed)
        plan_file = self.folder(name, self.config.train_seeds[0]) / "plan.json"
        shares = self.config.autoregressive_share if isinstance(method, AutoregressiveConfig) else 1.0
        plan = plan_steps(make, self.config.budget, shares * self.config.amount, plan_file, seed=seed)
        trainee, counter = make(plan.num_steps), EvaluationCounter()
        # A method that collapses is measured like the others, and its lines say so.
        loop: LoopConfig = replace(method.loop, num_steps=plan.num_steps, seed=seed, stop_on_collapse=0)
        accelerator = self.pipeline.accelerator
        history = TrainingLoop(
            loop,
            folder,
            trainee.saved(),
            counted_step(trainee, counter),
            label=name,
            shown=("log_ratio", "divergence", "loss", "entropy"),
            rank=accelerator.process_index,
            device=accelerator.device,
            settings={
                **flat_settings(method, name, leave_out=(f"{name}.loop", f"{name}.parallel")),
                "teacher": weights_digest(teacher),
                **stream_settings(self.pipeline.streams["train"]),
            },
        ).run()
        if accelerator.is_main_process:
            _save(trainee, folder / "student")
            write_fingerprint(folder / "student", self.pipeline.tokenizer)
        accelerator.wait_for_everyone()
        return Cost(
            steps=plan.num_steps,
            seconds=history[-1]["seconds"],
            network_evaluations=total_evaluations(history),
            guide_seconds=self._fit_guide(method, seed, folder),
        )

    def _fit_guide(self, method: MethodConfig, seed: int, folder: Path) -> float:
        """For the library's own method, whose loss trains no discriminator; seconds."""
        if method is not self.config.distill or not self.config.guide.updates:
            return 0.0
        return self.pipeline.fit_guide(folder, seed)[-1]["seconds"]

    def _maker(self, method: MethodConfig, teacher: DiT, seed: int) -> Callable[[int], Trainee]:
        pipeline = self.pipeline
        stream, process, accelerator = pipeline.streams["train"], pipeline.process, pipeline.accelerator

        def make(num_steps: int) -> Trainee:
            torch.manual_seed(seed)
            config: Any = replace(method, loop=replace(method.loop, num_steps=num_steps, seed=seed))
            if isinstance(config, AutoregressiveConfig):
                eos = pipeline.tokenizer.eos_token_id
                return AutoregressiveTraining(config, teacher.config, stream, process, eos, accelerator)
            return Distillation(config, teacher, stream, process, accelerator)

        return make

    def entries(self, run: Evaluation, teacher: DiT) -> list[Entry]:
        """Teacher and trained methods, with and without RGAS, loaded from their folders."""
        evaluate = self.config.evaluate
        found = [
            Entry(name="teacher", contestants=[run.plain("teacher", teacher)], steps=evaluate.steps, network=teacher)
        ]
        for name, method in self.config.trained().items():
            if isinstance(method, AutoregressiveConfig):
                found.append(self._autoregressive(run, name, method))
                continue
            loaded = [
                self.pipeline.load_student(self.folder(name, seed) / "student") for seed in self.config.train_seeds
            ]
            plain = [run.plain(f"{name}#{index}", student) for index, (student, _) in enumerate(loaded)]
            found.append(Entry(name=name, contestants=plain, steps=evaluate.steps, network=loaded[0][0]))
            guided = [
                run.guided(f"{name}+rgas#{index}", student, discriminator)
                for index, (student, discriminator) in enumerate(loaded)
                if discriminator is not None
            ]
            is_variant = self.config.ablation and name != next(iter(self.config.trained()))
            if guided and evaluate.guided_steps and not is_variant:
                steps = evaluate.guided_steps
                found.append(Entry(name=f"{name} + RGAS", contestants=guided, steps=steps, network=loaded[0][0]))
        return found

    def load_autoregressive(self, folder: Path) -> nn.Module:
        """A trained baseline, checked against the tokenizer."""
        network: Any = load_autoregressive(folder)
        check_tokenizer(folder, network.config.vocab_size, self.pipeline.tokenizer, flag="--autoregressive.path")
        return network

    def _autoregressive(self, run: Evaluation, name: str, method: AutoregressiveConfig) -> Entry:
        folders = (
            [Path(method.path)]
            if method.path
            else [self.folder(name, seed) / "student" for seed in self.config.train_seeds]
        )
        networks = [self.load_autoregressive(folder).to(run.accelerator.device) for folder in folders]

        def contestant(index: int, network: nn.Module) -> Contestant:
            def draw(steps: int, temperature: float, shape: tuple[int, int], generator: Generator) -> SamplerOutput:
                sampler = AutoregressiveSampler(run.process.mask_token_id, temperature=temperature)
                return sampler(network, shape, generator=generator, device=run.accelerator.device)

            return Contestant(f"{name}#{index}", draw)

        made = [contestant(index, network) for index, network in enumerate(networks)]
        return Entry(name=name, contestants=made, steps=(run.length,), network=networks[0])


def _save(trainee: Trainee, folder: Path) -> None:
    if isinstance(trainee, AutoregressiveTraining):
        network: Any = copy.deepcopy(trainee.student.averaged)
        network.save_pretrained(folder)
    else:
        save_student(trainee, folder)
