"""The text recipe: the shared stages, with a trained judge, figures at equal entropy, and a report."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from ...evaluation import Judge
from ..common.environment import make_folder
from ..common.evaluation import RESULTS_FILE
from ..common.results import read_results
from ..common.run import Run
from ..common.stages import Recipe, Stage
from ..common.student_stages import student_recipe
from .evaluate import RESULTS, evaluate
from .judge import train_judge
from .judge_loading import find_judge, load_judge_for
from .report import Frontier, headline, summary_table, write_report
from .run import text_run
from .settings import TextConfig


def make_recipe(config: TextConfig, command: str) -> Recipe:
    """Compose the recipe."""
    run = text_run(config, command)
    return student_recipe(
        run,
        config.sample,
        judge=Stage(run=partial(make_judge, run, config)),
        evaluate=Stage(
            run=lambda: evaluate(run, judge_of(run, config)),
            # A judge is looked for without its tokenizer first: where both are missing, both are named.
            needs=(
                lambda: run.check_steps(run.load_teacher()),
                partial(find_judge, config.judge.path),
                partial(judge_of, run, config),
            ),
            inputs=(run.load_student,),
            evaluations=lambda model: config.evaluate.network_evaluations(guided=run.fits_discriminator),
        ),
        report=Stage(run=partial(report, run), inputs=(partial(results_of, run),), reads_corpus=False),
    )


def judge_of(run: Run, config: TextConfig) -> Judge:
    """The shipped judge, one that the judge stage wrote, or a causal language model by folder or hub name."""
    return load_judge_for(config.judge.path, run.tokenizer, device=run.accelerator.device)


def make_judge(run: Run, config: TextConfig) -> None:
    """Train the small judge; it and the tokenizer go to ``judge/``."""
    run.check_vocabulary(config.judge.vocab_size, "--judge.vocab-size")
    if config.judge.eos_token_id != run.tokenizer.eos_token_id:
        raise ValueError(
            f"the judge is to end a text with token {config.judge.eos_token_id}, and the tokenizer does with "
            f"{run.tokenizer.eos_token_id}; give --judge.eos-token-id {run.tokenizer.eos_token_id}"
        )
    folder = make_folder(run.directory / "judge")
    train_judge(config.judge, run.streams, run.accelerator, folder)
    if run.accelerator.is_main_process:
        run.tokenizer.save(folder / "tokenizer.json")
    run.write_fingerprint(folder)
    print(f"judge: {folder}")


def report(run: Run) -> None:
    """Write ``report.md`` with its plots, and print its verdict and a short table."""
    run.accelerator.wait_for_everyone()
    if not run.accelerator.is_main_process:
        return
    results = results_of(run)
    path = write_report(run, results)
    frontiers = [Frontier.from_dict(saved) for saved in results["frontiers"]]
    page = ["\n".join(headline(results, frontiers)), summary_table(results, frontiers)]
    Console().print(Markdown("\n\n".join(page)))
    for written in (path, run.directory / "student", run.directory / "metrics.jsonl"):
        print(written)


def results_of(run: Run) -> dict[str, Any]:
    """Figures that the evaluation stage wrote."""
    return read_results(run.directory / RESULTS_FILE, RESULTS)
