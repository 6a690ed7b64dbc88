"""The protein recipe: the shared stages, with residues for words, an n-gram judge, and figures of proteins."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from rich.console import Console
from rich.markdown import Markdown

from ...evaluation import NGramJudge
from ..common.environment import make_folder
from ..common.evaluation import RESULTS_FILE
from ..common.results import read_results, write_results
from ..common.run import Run
from ..common.stages import Recipe, Stage
from ..common.student_stages import student_recipe
from ..common.teacher import external_config
from .esm import find_residues
from .evaluate import RESULTS, evaluate
from .report import protein_table, write_report
from .residues import ResidueTokenizer
from .settings import ProteinConfig


def make_recipe(config: ProteinConfig, command: str) -> Recipe:
    """Compose the recipe."""
    run = Run(
        config,
        command,
        partial(residues_of, config),
        bundled_text="protein/proteins.fasta.xz",
        bundled_teacher="protein/teacher",
    )
    return student_recipe(
        run,
        config.sample,
        evaluate=Stage(
            run=partial(measure, run, config),
            needs=(lambda: run.check_steps(run.load_teacher()),),
            inputs=(run.load_student,),
            evaluations=lambda model: config.evaluate.network_evaluations(
                guided=run.fits_discriminator, frontiers=False
            ),
        ),
        report=Stage(run=partial(report, run), inputs=(partial(results_of, run),), reads_corpus=False),
    )


def residues_of(config: ProteinConfig) -> ResidueTokenizer:
    """The tokenizer of the teacher that the settings name."""
    for teacher in (config.teacher.path, config.teacher.init):
        model = external_config(teacher)
        if model is not None:
            return find_residues(teacher, model)
    return ResidueTokenizer()


def measure(run: Run, config: ProteinConfig) -> None:
    """Measure teacher, student and guided student; figures go to ``evaluation.json``."""
    residues = cast(ResidueTokenizer, run.tokenizer)
    # The judge counts n-grams of sequences that neither teacher nor student saw.
    judge = NGramJudge(
        torch.from_numpy(run.streams["judge"].ids[:].astype("int64"))[None],
        vocab_size=residues.vocab_size,
        order=config.ngram,
        excluded=(residues.mask_token_id, *residues.forbidden_token_ids),
    )
    results = evaluate(run, config, residues, judge)
    write_results(make_folder(run.directory) / RESULTS_FILE, results)


def report(run: Run) -> None:
    """Write ``report.md``, and print the table."""
    results = results_of(run)
    path = write_report(run, results)
    Console().print(Markdown(protein_table(results)))
    print(path)


def results_of(run: Run) -> dict[str, Any]:
    """Figures that the evaluation stage wrote."""
    return read_results(run.directory / RESULTS_FILE, RESULTS)
