"""The stages of a comparison: train every method, measure every line alike, write it down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown
from torch import Generator, Tensor, nn
from tqdm import tqdm

from ...evaluation import (
    CausalLMJudge,
    Frontier,
    Judge,
    TextJudge,
    encode_with_judge,
    generative_perplexity,
    likelihood_bound,
    mauve,
    measure_diversity,
    measure_frontier_around,
    measure_speeds,
    self_bleu,
)
from ...training import flat_settings, fold_seed
from ..common.environment import describe_machine, make_folder, matmul_precision
from ..common.results import read_results, write_results
from ..text import smollm2
from ..text.corpus import load_streams
from ..text.evaluate import Evaluation, between_samples_of_data
from ..text.judge_loading import load_judge_for
from ..text.pipeline import Pipeline
from .autoregressive import AutoregressiveConfig, token_nats
from .contestants import Entry, Training
from .report import comparison_tables, write_comparison
from .settings import ComparisonConfig

RESULTS_FILE, COSTS_FILE = "comparison.json", "costs.json"
RESULTS: dict[str, type] = {
    "budget": str, "amount": float, "train_seeds": list, "seeds": list, "num_samples": int, "judges": list,
    "length": int, "ablation": bool, "frontier_steps": int, "data": dict, "lines": list, "training": dict,
    "parameters": dict, "speed": list, "likelihood": list, "seconds": float,
}  # fmt: skip


class Comparison(Pipeline):
    """One comparison: its settings, its folder, and its stages.

    Args:
        config: every setting.
        command: the command line, for the report.
    """

    config: ComparisonConfig

    def __init__(self, config: ComparisonConfig, command: str) -> None:
        super().__init__(config, command)
        self.training = Training(self, config)

    def check_stages(self, stages: tuple[str, ...]) -> None:
        """Look for everything that the stages need, before anything is trained or written.

        Raises:
            ValueError: naming all that is missing, each with its flag.
        """
        if stages == ("report",):
            self._results()
            return
        if self.accelerator.num_processes > 1:
            raise ValueError("a comparison runs in one process, so that seconds and draws are those of one device")
        self.check(("distill", "evaluate") if "train" in stages else ("distill",))
        if "evaluate" in stages:
            for name in self.config.extra_judges:
                self._extra_judge(name)
            names = [file.name for file in self.config.texts]
            if len(set(names)) < len(names):
                raise ValueError(f"--texts holds two files of one name: {', '.join(names)}; name them apart")
            for file in self.config.texts:
                if not file.exists():
                    raise FileNotFoundError(f"no text at {file}; give --texts other files")
        path = self.config.autoregressive.path
        if path and "ar" in self.config.methods:
            self.training.load_autoregressive(Path(path))
        if stages == ("evaluate",) and not (self.directory / COSTS_FILE).exists():
            raise FileNotFoundError(f"{self.directory / COSTS_FILE} is missing; run the train stage first")

    def train(self, *, late: Callable[[], bool] = lambda: False) -> None:
        """Train every method with every seed; costs go to ``costs.json`` as each ends.

        Args:
            late: asked before each method; once it is true, no further one is trained, and the comparison goes on with
                those that were.
        """
        teacher = self.load_teacher()
        folder = make_folder(self.directory)
        costs: dict[str, Any] = {}
        write_results(folder / COSTS_FILE, {})
        for name, method in self.config.trained().items():
            if isinstance(method, AutoregressiveConfig) and method.path:
                continue
            if late():
                self.config.methods = tuple(each for each in self.config.methods if each != name)
                continue
            with matmul_precision(self.config.matmul):
                trained = [self.training.train(name, method, teacher, seed) for seed in self.config.train_seeds]
            costs[name] = [asdict(cost) for cost in trained]
            write_results(folder / COSTS_FILE, costs)

    def judges(self) -> list[Judge]:
        """The recipe's own judge, then the others."""
        return [self.load_judge(), *map(self._extra_judge, self.config.extra_judges)]

    def _extra_judge(self, name: str) -> Judge:
        if name != smollm2.NAME:
            return load_judge_for(name, self.tokenizer, device=self.accelerator.device, flag="--extra-judges")
        return smollm2.load_gguf_judge(
            smollm2.find_gguf(),
            decode=self.tokenizer.decode,
            eos_token_id=self.tokenizer.eos_token_id,
            device=self.accelerator.device,
        )

    def evaluate(self, *, late: Callable[[], bool] = lambda: False) -> None:
        """Measure every line; figures go to ``comparison.json``.

        Args:
            late: asked before each line; once it is true, no further one is measured.
        """
        started = time.perf_counter()
        config, teacher = self.config, self.load_teacher()
        heldout = self.streams["heldout"].packed(1024).to(self.accelerator.device)
        judges = self.judges()
        run = Evaluation(config.evaluate, self.process, judges[0], self.accelerator, heldout.shape[1])
        entries = self.training.entries(run, teacher)
        measured = Measurement(run, config, judges, heldout)
        costs = read_results(self.directory / COSTS_FILE, {}, stage="train")
        results = {
            "budget": config.budget,
            "amount": config.amount,
            "autoregressive_share": config.autoregressive_share,
            "train_seeds": list(config.train_seeds),
            "seeds": list(config.evaluate.seeds),
            "num_samples": config.evaluate.num_samples,
            "precision": run.precision,
            "judges": [judge.name for judge in judges],
            "length": run.length,
            "ablation": config.ablation,
            "frontier_steps": config.evaluate.frontier_steps,
            "data": measured.data(),
            "lines": measured.lines(entries, late),
            "training": costs,
            "parameters": {entry.name: sum(p.numel() for p in entry.network.parameters()) for entry in entries},
            "speed": measured.speeds(entries),
            "likelihood": self._likelihoods(entries, heldout),
        }
        results["seconds"] = time.perf_counter() - started
        write_results(make_folder(self.directory) / RESULTS_FILE, results)

    def _likelihoods(self, entries: list[Entry], heldout: Tensor) -> list[dict[str, Any]]:
        """Bounds (autoregressive models: values) on held-out text and on the given files, one line a network."""
        texts = {"held-out": heldout}
        for file in self.config.texts:
            cache = self.config.output / "tokens"
            streams = load_streams(str(file), self.tokenizer, self.config.data.length, cache)
            texts[file.name] = torch.cat([stream.packed() for stream in streams.values()]).to(heldout.device)
        count = self.config.bound_sequences
        return [
            {
                "method": entry.name,
                "text": name,
                **self._likelihood(entry.network, x[:: max(1, len(x) // count)][:count]),
            }
            for entry in entries
            if not entry.name.endswith("+ RGAS")
            for name, x in texts.items()
        ]

    @torch.no_grad()
    def _likelihood(self, network: nn.Module, x: Tensor) -> dict[str, Any]:
        if hasattr(network, "transformer"):
            nats_N = torch.cat([token_nats(network, part, self.process.mask_token_id).mean(1) for part in x.split(32)])
            error = float(nats_N.std() / len(x) ** 0.5) if len(x) > 1 else None
            return {"nats_per_token": float(nats_N.mean()), "standard_error": error, "bound": False}
        generator = Generator(device=x.device).manual_seed(fold_seed("likelihood"))
        with self.accelerator.autocast():
            out = likelihood_bound(self.process, network, x, repeats=4, generator=generator)
        return {"nats_per_token": out.nats_per_token, "standard_error": out.standard_error, "bound": True}

    def report(self) -> None:
        """Write ``report.md`` with its plots, and print the tables."""
        results = self._results()
        path = write_comparison(
            results,
            self.tokenizer,
            self.directory,
            command=self.command,
            machine=describe_machine(self.accelerator),
            settings=flat_settings(self.config),
        )
        Console().print(Markdown(comparison_tables(results)))
        print(path)

    def _results(self) -> dict[str, Any]:
        return read_results(self.directory / RESULTS_FILE, RESULTS)


class Measurement:
    """Draws and judges; every set of samples is drawn once, whoever asks."""

    def __init__(self, run: Evaluation, config: ComparisonConfig, judges: list[Judge], heldout: Tensor) -> None:
        self.run = run
        self.config = config
        self.judges = judges
        self.heldout = heldout
        self.entropy = measure_diversity(heldout).entropy
        count = config.evaluate.num_samples * len(config.evaluate.seeds)
        # As many sequences of data as of samples: figures of sets depend on their size.
        self.real, self.other_real = heldout[0::2][:count], heldout[1::2][:count]
        self.encoder = judges[0]

    def data(self) -> dict[str, Any]:
        """Held-out text under every judge, and a set of it beside another: what a perfect model would get."""
        return {
            "nats_per_token": {
                judge.name: generative_perplexity(self.heldout, judge, precision="text").nats_per_token
                for judge in self.judges
            },
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
        if isinstance(self.encoder, CausalLMJudge | TextJudge) and min(len(sequences), len(self.real)) > 1:
            features = [encode_with_judge(self.encoder, each) for each in (sequences, self.real)]
            generator = Generator().manual_seed(fold_seed("mauve"))
            figures["mauve"] = mauve(*(each.cpu() for each in features), generator=generator).score
        return figures

    def lines(self, entries: list[Entry], late: Callable[[], bool]) -> list[dict[str, Any]]:
        """Every entry at every number of its steps, those that are compared first, until it is late."""
        compared = self.config.evaluate.frontier_steps
        todo = [(entry, steps) for entry in entries for steps in entry.steps]
        urgent = sorted(range(len(todo)), key=lambda index: todo[index][1] != compared)
        measured = {index: self._line(*todo[index]) for index in tqdm(urgent, desc="evaluate") if not late()}
        return [measured[index] for index in sorted(measured)]

    def _line(self, entry: Entry, steps: int) -> dict[str, Any]:
        frontiers = [self._frontier(entry, steps, judge) for judge in self.judges]
        # The set at the temperature whose entropy is nearest to the data's.
        nearest = min(frontiers[0].means(), key=lambda mean: abs(mean.entropy - self.entropy)).temperature
        outputs = [entry.sample(self.run, steps, nearest, seed) for seed in self.config.evaluate.seeds]
        sequences = torch.cat([out.sequences for out in outputs])
        return {
            "method": entry.name,
            "steps": steps,
            "nfe": max(out.nfe for out in outputs),
            "network_evaluations": max(out.network_evaluations for out in outputs),
            "frontiers": [frontier.to_dict() for frontier in frontiers],
            "temperature": nearest,
            **self._set_figures(sequences),
            "samples": sequences[: self.config.evaluate.shown].tolist(),
        }

    def _frontier(self, entry: Entry, steps: int, judge: Judge) -> Frontier:
        return measure_frontier_around(
            self.entropy,
            lambda temperature, seed: entry.sample(self.run, steps, temperature, seed).sequences,
            judge,
            method=f"{entry.name}, {steps} steps",
            seeds=self.config.evaluate.seeds,
            temperatures=self.config.temperatures,
            spacing=self.config.temperature_spacing,
            limits=self.config.temperature_limits,
            precision=self.run.precision,
            mask_token_id=self.run.process.mask_token_id,
            data=self.other_real,
        )

    def speeds(self, entries: list[Entry]) -> list[dict[str, Any]]:
        """Tokens per second of a batch, and latency of a single sequence, in turns so that all share the machine."""
        evaluate = self.config.evaluate
        chosen = [(entry, evaluate.frontier_steps) for entry in entries if evaluate.frontier_steps in entry.steps]
        chosen += [(entry, entry.steps[-1]) for entry in entries if evaluate.frontier_steps not in entry.steps]
        chosen.append((entries[0], max(evaluate.steps)))
        lines = []
        by_batch = {
            batch: measure_speeds(
                {f"{entry.name}, {steps} steps": self._call(entry, steps, batch) for entry, steps in chosen},
                repeats=3,
                warmup=1,
                device=self.run.accelerator.device,
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

    def _call(self, entry: Entry, steps: int, batch: int) -> Callable[[], Tensor]:
        def draw() -> Tensor:
            generator = Generator(device=self.run.accelerator.device).manual_seed(0)
            with self.run.accelerator.autocast():
                return entry.contestants[0].draw(steps, 1.0, (batch, self.run.length), generator).sequences

        return draw
