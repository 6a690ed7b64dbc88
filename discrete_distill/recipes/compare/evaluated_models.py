"""Lines of the comparison: each a network of every training seed, and how it is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Generator, nn

from ...samplers import Frame, SamplerOutput
from ..common.distill_config import DistillConfig
from ..common.evaluation import Evaluation, SamplerSpec
from ..common.fingerprint import check_tokenizer
from ..common.run import Run
from .ablation import FULL
from .autoregressive import AutoregressiveConfig, AutoregressiveSampler, load_autoregressive
from .settings import ComparisonConfig
from .training import MethodConfig, training_folder


@dataclass(kw_only=True)
class EvaluatedModel:
    """A line of the comparison.

    Attributes:
        name: in tables.
        samplers: one for each training seed; the seeds of sampling take turns.
        steps: at which it is measured.
        network: of the first training seed, for likelihoods.
    """

    name: str
    samplers: list[SamplerSpec]
    steps: tuple[int, ...]
    network: nn.Module

    def sample(self, evaluation: Evaluation, steps: int, temperature: float, seed: int) -> SamplerOutput:
        """What the training of this sampling seed's turn draws."""
        turn = evaluation.config.seeds.index(seed) % len(self.samplers)
        return evaluation.sample(self.samplers[turn], steps, temperature, seed)


def evaluated_models(
    run: Run,
    config: ComparisonConfig,
    methods: Mapping[str, MethodConfig],
    evaluation: Evaluation,
    teacher: Any,
) -> list[EvaluatedModel]:
    """Teacher and trained methods, with and without RGAS, loaded from their folders. Each student is drawn in the order
    of its paths; where one is strided, the teacher is drawn in that order as well."""
    chosen = config.evaluate
    plain_teacher = [evaluation.plain("teacher", teacher)]
    teacher_steps = tuple(sorted({*chosen.steps, *chosen.teacher_frontier_steps}))
    found = [EvaluatedModel(name="teacher", samplers=plain_teacher, steps=teacher_steps, network=teacher)]
    if any(isinstance(method, DistillConfig) and method.order == "strided" for method in methods.values()):
        strided = [evaluation.plain("teacher, strided", teacher, "strided")]
        found.append(EvaluatedModel(name="teacher, strided", samplers=strided, steps=chosen.steps, network=teacher))
    for name, method in methods.items():
        if isinstance(method, AutoregressiveConfig):
            found.append(_autoregressive(run, config, evaluation, name, method))
            continue
        order = method.order
        loaded = [run.load_student(training_folder(run, name, seed) / "student") for seed in config.train_seeds]
        plain = [evaluation.plain(f"{name}#{index}", student, order) for index, (student, _) in enumerate(loaded)]
        found.append(EvaluatedModel(name=name, samplers=plain, steps=chosen.steps, network=loaded[0][0]))
        guided = [
            evaluation.guided(f"{name}+rgas#{index}", student, discriminator, order)
            for index, (student, discriminator) in enumerate(loaded)
            if discriminator is not None
        ]
        is_variant = config.ablation and name != FULL
        if guided and chosen.guided_steps and not is_variant:
            steps = chosen.guided_steps
            found.append(EvaluatedModel(name=f"{name} + RGAS", samplers=guided, steps=steps, network=loaded[0][0]))
    return found


def load_checked(run: Run, folder: Path) -> nn.Module:
    """A trained autoregressive baseline, checked against the tokenizer.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or of another tokenizer.
    """
    network: Any = load_autoregressive(folder)
    check_tokenizer(folder, network.config.vocab_size, run.tokenizer, flag="--autoregressive.path")
    return network


def _autoregressive(
    run: Run, config: ComparisonConfig, evaluation: Evaluation, name: str, method: AutoregressiveConfig
) -> EvaluatedModel:
    trained = [training_folder(run, name, seed) / "student" for seed in config.train_seeds]
    folders = [Path(method.path)] if method.path else trained
    networks = [load_checked(run, folder).to(run.accelerator.device) for folder in folders]

    def spec(index: int, network: nn.Module) -> SamplerSpec:
        def draw(steps: int, temperature: float, shape: tuple[int, Any], generator: Generator) -> SamplerOutput:
            sampler = AutoregressiveSampler(run.process, temperature=temperature)
            count, length = shape
            frame = length if isinstance(length, Frame) else Frame(length)
            out = sampler(network, (count, frame.length), generator=generator, device=run.accelerator.device)
            return replace(out, sequences=frame.around(out.sequences))

        return SamplerSpec(f"{name}#{index}", draw)

    samplers = [spec(index, network) for index, network in enumerate(networks)]
    return EvaluatedModel(name=name, samplers=samplers, steps=(run.config.data.length,), network=networks[0])
