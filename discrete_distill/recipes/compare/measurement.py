"""Figures of a comparison: every line alike, each set of samples drawn once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from ...evaluation import (
    CausalLMJudge,
    Frontier,
    Judge,
    TextJudge,
    encode_with_judge,
    mauve,
    measure_diversity,
    measure_frontier_around,
    measure_speeds,
    self_bleu,
)
from ...training import fold_seed
from ..common.evaluation import Evaluation, between_samples_of_data
from .evaluated_models import EvaluatedModel
from .further_judges import Samples, nats_of_text
from .settings import ComparisonConfig


class Measurement:
    """Draws, and judges by the recipe's own judge; every set of samples is drawn once.

    Attributes:
        samples: of each line, by temperature and seed.
    """

    def __init__(self, evaluation: Evaluation, config: ComparisonConfig, judge: Judge, heldout: Tensor) -> None:
        self.evaluation = evaluation
        self.config = config
        self.judge = judge
        self.samples: list[Samples] = []
        self.heldout = heldout
        self.entropy = measure_diversity(heldout).entropy
        count = config.evaluate.num_samples * len(config.evaluate.seeds)
        # As many sequences of data as of samples: figures of sets depend on their size.
        self.real, self.other_real = heldout[0::2][:count], heldout[1::2][:count]

    def data(self) -> dict[str, Any]:
        """Held-out text under the judge, and a set of it next to another: what a perfect model would get."""
        return {
            "nats_per_token": {self.judge.name: nats_of_text(self.heldout, self.judge)},
            "entropy": self.entropy,
            "between_samples": between_samples_of_data(self.real, self.other_real, self.config.evaluate.num_samples),
            "set": self._set_figures(self.other_real),
        }

    def _set_figures(self, sequences: Tensor) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "diversity": asdict(measure_diversity(sequences)),
            "self_bleu": self_bleu(sequences),
            "mauve": None,
        }
        if isinstance(self.judge, CausalLMJudge | TextJudge) and min(len(sequences), len(self.real)) > 1:
            features = [encode_with_judge(self.judge, each) for each in (sequences, self.real)]
            generator = Generator().manual_seed(fold_seed("mauve"))
            figures["mauve"] = mauve(*(each.cpu() for each in features), generator=generator).score
        return figures

    def lines(self, models: list[EvaluatedModel], late: Callable[[], bool]) -> list[dict[str, Any]]:
        """Every model at every number of its steps, those that are compared first, until it is late."""
        compared = self.config.evaluate.frontier_steps
        todo = [(model, steps) for model in models for steps in model.steps]
        urgent = sorted(range(len(todo)), key=lambda index: todo[index][1] != compared)
        measured = {index: self._line(*todo[index]) for index in tqdm(urgent, desc="evaluate") if not late()}
        chosen = sorted(measured)
        self.samples = [self._samples(measured[index], *todo[index]) for index in chosen]
        return [measured[index] for index in chosen]

    def _samples(self, line: dict[str, Any], model: EvaluatedModel, steps: int) -> Samples:
        points = {(point["temperature"], point["seed"]) for point in line["frontiers"][0]["points"]}
        return {key: model.sample(self.evaluation, steps, *key).sequences for key in points}

    def _line(self, model: EvaluatedModel, steps: int) -> dict[str, Any]:
        frontier = self._frontier(model, steps)
        # The set at the temperature whose entropy is nearest to the data's.
        nearest = min(frontier.means(), key=lambda mean: abs(mean.entropy - self.entropy)).temperature
        outputs = [model.sample(self.evaluation, steps, nearest, seed) for seed in self.config.evaluate.seeds]
        sequences = torch.cat([out.sequences for out in outputs])
        return {
            "method": model.name,
            "steps": steps,
            "nfe": max(out.nfe for out in outputs),
            "network_evaluations": max(out.network_evaluations for out in outputs),
            "frontiers": [frontier.to_dict()],
            "temperature": nearest,
            **self._set_figures(sequences),
            "samples": sequences[: self.config.evaluate.shown].tolist(),
        }

    def _frontier(self, model: EvaluatedModel, steps: int) -> Frontier:
        return measure_frontier_around(
            self.entropy,
            lambda temperature, seed: model.sample(self.evaluation, steps, temperature, seed).sequences,
            self.judge,
            method=f"{model.name}, {steps} steps",
            seeds=self.config.evaluate.seeds,
            temperatures=self.config.temperatures,
            spacing=self.config.temperature_spacing,
            limits=self.config.temperature_limits,
            precision=self.evaluation.precision,
            mask_token_id=self.evaluation.process.mask_token_id,
            data=self.other_real,
        )

    def speeds(self, models: list[EvaluatedModel]) -> list[dict[str, Any]]:
        """Tokens per second of a batch, and latency of a single sequence, in turns so that all share the machine."""
        evaluate = self.config.evaluate
        chosen = [(model, evaluate.frontier_steps) for model in models if evaluate.frontier_steps in model.steps]
        chosen += [(model, model.steps[-1]) for model in models if evaluate.frontier_steps not in model.steps]
        chosen.append((models[0], max(evaluate.steps)))
        lines = []
        by_batch = {
            batch: measure_speeds(
                {
                    f"{model.name}, {steps} steps": self.evaluation.timed(model.samplers[0], steps, batch)
                    for model, steps in chosen
                },
                repeats=3,
                warmup=1,
                device=self.evaluation.accelerator.device,
            )
            for batch in (1, min(evaluate.batch_size, evaluate.num_samples))
        }
        single, batched = by_batch.values() if len(by_batch) == 2 else 2 * tuple(by_batch.values())
        for name, speed in batched.items():
            line = {
                "method": name,
                "tokens_per_second": speed.tokens_per_second,
                "spread": speed.spread,
                "batch": max(by_batch),
                "latency": single[name].latency,
            }
            lines.append(line)
        return lines
