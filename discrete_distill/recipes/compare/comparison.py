"""The stages of a comparison: train every method, measure every line alike, write it down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor

from ...evaluation import Judge
from ..common.distill_config import DistillConfig
from ..common.environment import make_folder
from ..common.evaluation import Evaluation
from ..common.results import read_results, write_results
from ..common.teacher_check import check_teacher
from ..text import smollm2
from ..text.judge_loading import load_judge_for
from ..text.run import text_run
from .autoregressive import AutoregressiveConfig
from .evaluated_models import evaluated_models, load_checked
from .further_judges import price, read_samples, write_samples
from .likelihoods import likelihoods
from .measurement import Measurement
from .report import comparison_tables, write_comparison
from .settings import ComparisonConfig
from .tasks import ComparedTask
from .training import train_method

RESULTS_FILE, COSTS_FILE = "comparison.json", "costs.json"
RESULTS: dict[str, type] = {
    "budget": str, "amount": float, "train_seeds": list, "seeds": list, "num_samples": int, "judges": list,
    "samples": str, "length": int, "ablation": bool, "frontier_steps": int, "data": dict, "lines": list,
    "training": dict, "parameters": dict, "speed": list, "likelihood": list, "seconds": float,
}  # fmt: skip


class Comparison:
    """One comparison: its settings, its run, and its stages.

    Args:
        config: every setting.
        command: the command line, for the report.

    Attributes:
        methods: settings of what is trained, by name.
        tasks: on which those methods are compared as well.
    """

    def __init__(self, config: ComparisonConfig, command: str) -> None:
        self.config = config
        self.run = text_run(config, command)
        self.methods = config.trained()
        self.tasks = [ComparedTask(name, config, command) for name in dict.fromkeys(config.tasks)]

    def train(self, *, late: Callable[[], bool] = lambda: False) -> None:
        """Train every method with every seed, then on every task; costs go to ``costs.json`` as each ends.

        Args:
            late: called before each method and task; once it is true, no further one is trained, and the comparison
                goes on with those that were.
        """
        teacher = self.run.load_teacher()
        folder = make_folder(self.run.directory)
        costs: dict[str, Any] = {}
        write_results(folder / COSTS_FILE, {})
        for name, method in list(self.methods.items()):
            if isinstance(method, AutoregressiveConfig) and method.path:
                continue
            if late():
                del self.methods[name]
                continue
            trained = [
                train_method(self.run, self.config, name, method, teacher, seed) for seed in self.config.train_seeds
            ]
            costs[name] = [asdict(cost) for cost in trained]
            write_results(folder / COSTS_FILE, costs)
        for task in list(self.tasks):
            if late():
                self.tasks.remove(task)
                continue
            task.train()

    def judges(self) -> list[Judge]:
        """The recipe's own judge, then the others."""
        own = load_judge_for(self.config.judge.path, self.run.tokenizer, device=self.run.accelerator.device)
        return [own, *self.further_judges()]

    def further_judges(self) -> list[Judge]:
        """Those of ``--extra-judges``."""
        return [self._extra_judge(name) for name in self.config.extra_judges]

    def _extra_judge(self, name: str) -> Judge:
        tokenizer, device = self.run.tokenizer, self.run.accelerator.device
        if name != smollm2.NAME:
            return load_judge_for(name, tokenizer, device=device, flag="--extra-judges")
        return smollm2.load_gguf_judge(
            smollm2.find_gguf(), decode=tokenizer.decode, eos_token_id=tokenizer.eos_token_id, device=device
        )

    def evaluate(self, *, late: Callable[[], bool] = lambda: False) -> None:
        """Measure every line; figures go to ``comparison.json``.

        Args:
            late: called before each line; once it is true, no further one is measured.
        """
        started = time.perf_counter()
        run, config, teacher = self.run, self.config, self.run.load_teacher()
        heldout, judges = self.heldout(), self.judges()
        evaluation = Evaluation(config.evaluate, run.process, judges[0], run.accelerator, run.streams["heldout"].shape)
        models = evaluated_models(run, config, self.methods, evaluation, teacher)
        measured = Measurement(evaluation, config, judges[0], heldout)
        costs = read_results(run.directory / COSTS_FILE, {}, stage="train")
        results: dict[str, Any] = {
            "budget": config.budget,
            "amount": config.amount,
            "autoregressive_share": config.autoregressive_share,
            "train_seeds": list(config.train_seeds),
            "seeds": list(config.evaluate.seeds),
            "num_samples": config.evaluate.num_samples,
            "precision": evaluation.precision,
            "judges": [judges[0].name],
            "length": heldout.shape[1],
            "ablation": config.ablation,
            "frontier_steps": config.evaluate.frontier_steps,
            "data": measured.data(),
            "lines": measured.lines(models, late),
            "training": costs,
            "parameters": {model.name: sum(p.numel() for p in model.network.parameters()) for model in models},
            "speed": measured.speeds(models),
            "likelihood": likelihoods(run, config, models, heldout),
        }
        results["samples"] = write_samples(make_folder(run.directory), measured.samples)
        for judge in (None, *judges[1:]):  # Written after each, so that a run that ends early keeps what it has.
            if judge is not None:
                price(results, measured.samples, judge, heldout, run.process.mask_token_id)
            results["seconds"] = time.perf_counter() - started
            write_results(run.directory / RESULTS_FILE, results)
        for task in self.tasks:
            task.evaluate()

    def heldout(self) -> Tensor:
        """Held-out text, int64 ``[1024, L]`` or fewer."""
        return self.run.streams["heldout"].packed(1024).to(self.run.accelerator.device)

    def judge(self) -> None:
        """Price the samples of the last evaluation by those of ``--extra-judges`` that have not."""
        run, results = self.run, self.results()
        samples, heldout = read_samples(run.directory, results), self.heldout()
        for judge in self.further_judges():
            price(results, samples, judge, heldout, run.process.mask_token_id)
            write_results(run.directory / RESULTS_FILE, results)

    def check_samples(self) -> None:
        """Look for the samples of the last evaluation, and for judges to price them."""
        read_samples(self.run.directory, self.results())
        if not self.config.extra_judges:
            raise ValueError("the judge stage prices samples by further judges: name one or more by --extra-judges")

    def report(self) -> None:
        """Write ``report.md`` with its plots, and print the tables."""
        results = self.results()
        answers = [task.report() for task in self.tasks]
        path = write_comparison(self.run, results, answers)
        Console().print(Markdown("\n\n".join((comparison_tables(results), *answers))))
        print(path)

    def results(self) -> dict[str, Any]:
        """Figures that the evaluation stage wrote."""
        return read_results(self.run.directory / RESULTS_FILE, RESULTS)

    def check_process(self) -> None:
        """Refuse to start in several processes."""
        if self.run.accelerator.num_processes > 1:
            raise ValueError("a comparison runs in one process, so that seconds and draws are those of one device")

    def check_texts(self) -> None:
        """Look for the files of ``--texts``.

        Raises:
            FileNotFoundError: if one is missing.
            ValueError: if two have one name.
        """
        names = [file.name for file in self.config.texts]
        if len(set(names)) < len(names):
            raise ValueError(f"--texts holds two files of one name: {', '.join(names)}; name them apart")
        for file in self.config.texts:
            if not file.exists():
                raise FileNotFoundError(f"no text at {file}; give --texts other files")

    def check_autoregressive(self) -> None:
        """Look for the baseline of ``--autoregressive.path``, if one is named."""
        path = self.config.autoregressive.path
        if path and "ar" in self.config.methods:
            load_checked(self.run, Path(path))

    def check_teacher(self) -> None:
        """Look for the teacher, and refuse methods that cannot be made of it, and steps that cannot be sampled."""
        teacher = self.run.load_teacher()
        self.run.check_steps(teacher)
        for name, method in self.methods.items():
            if not isinstance(method, DistillConfig):
                continue
            if method.learns_target and not method.target:
                raise ValueError(
                    f"{name} learns from an autoregressive network: name its folder by --{name}.target, or leave "
                    f"{name} out of --methods"
                )
            check_teacher(method, teacher)

    def check_costs(self) -> None:
        """Look for what the train stage wrote."""
        read_results(self.run.directory / COSTS_FILE, {}, stage="train")
