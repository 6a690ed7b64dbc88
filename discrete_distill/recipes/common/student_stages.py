"""The stages from a corpus to a few-step student: teacher, distillation, discriminator, samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...process.blocks import reads_blocks
from ...training import TrainingCollapsed
from .discriminator import DiscriminatorTrainer
from .distill import distil
from .dry_run import distillation_evaluations
from .environment import make_folder
from .fingerprint import check_tokenizer
from .model_tokenizer import ModelTokenizer
from .network_shape import network_shape
from .run import Run
from .sample import SampleConfig, show_samples
from .stages import Recipe, Stage
from .stopped_report import write_report_of_stopped_run
from .teacher import external_config, initial_network, train_teacher
from .teacher_check import check_target, check_teacher


def student_recipe(run: Run, sample: SampleConfig, **stages: Stage) -> Recipe:
    """Compose a recipe of the stages teacher, distill, discriminator and sample, and of its own stages.

    The stage "all" trains a target where the student needs one and none is named, distils, fits a discriminator if it
    is to be updated, evaluates and reports.
    """
    discriminator = ("discriminator",) if run.config.discriminator.updates else ()
    target = ("teacher",) if run.config.distill.learns_target and not run.config.distill.target else ()
    return Recipe(
        run=run,
        stages={**student_stages(run, sample), **stages},
        default=(*target, "distill", *discriminator, "evaluate", "report"),
        distillations={"distillation": run.config.distill},
    )


def student_stages(run: Run, sample: SampleConfig) -> dict[str, Stage]:
    """The stages teacher, distill, discriminator and sample."""
    return {
        "teacher": Stage(
            run=lambda: make_teacher(run),
            needs=(lambda: check_initial_teacher(run),),
            may_round=True,
        ),
        "distill": Stage(
            run=lambda: make_student(run),
            needs=(lambda: check_teacher(run.config.distill, run.load_teacher()),),
            inputs=(lambda: check_target_of(run),),
            may_round=True,
            evaluations=lambda model: distillation_evaluations(run.config.distill, model),
        ),
        "discriminator": Stage(
            run=lambda: fit_discriminator(run, make_folder(run.directory), run.config.seed),
            needs=(lambda: check_updates(run),),
            inputs=(run.load_student,),
            may_round=True,
            evaluations=lambda model: run.config.discriminator.network_evaluations,
        ),
        "sample": Stage(
            run=lambda: show_samples(run, sample),
            inputs=(run.load_teacher if sample.teacher else run.load_student,),
            reads_corpus=False,
            writes=False,
        ),
    }


def make_teacher(run: Run) -> None:
    """Train a teacher; it and the tokenizer go to ``teacher/``."""
    config = run.config.teacher
    if external_config(config.init) is None:
        run.check_length(config.model.max_length)
        run.check_vocabulary(config.model.vocab_size, "--teacher.model.vocab-size")
    folder = make_folder(run.directory / "teacher")
    if run.accelerator.is_main_process:
        run.tokenizer.save(folder / "tokenizer.json")
    init = run.teacher_location(config.init)
    train_teacher(config, run.streams, run.process, run.accelerator, folder, init=init)
    run.write_fingerprint(folder)
    print(f"teacher: {folder}")


def check_initial_teacher(run: Run) -> None:
    """Look for the teacher of ``--teacher.init``, if one is named.

    Raises:
        FileNotFoundError: if it cannot be had.
        ValueError: if it does not fit ``--teacher.model`` or the tokenizer.
    """
    config = run.config.teacher
    if config.init:
        location = run.teacher_location(config.init)
        shape = network_shape(initial_network(config, location))
        run.check_length(shape.max_length)
        if not isinstance(run.tokenizer, ModelTokenizer):  # which was read beside the model itself
            check_tokenizer(location, shape.vocab_size, run.tokenizer, flag="--teacher.init")


def check_target_of(run: Run) -> None:
    """Refuse a target that the student cannot learn from, or that was trained with another tokenizer."""
    if run.target:
        check_target(run.target, run.load_teacher())
        if not isinstance(run.tokenizer, ModelTokenizer):
            check_tokenizer(run.target, run.tokenizer.vocab_size, run.tokenizer, flag="--distill.target")


def make_student(run: Run) -> None:
    """Distil the teacher; the student goes to ``student/``."""
    teacher, folder, config = run.load_teacher(), make_folder(run.directory), run.config.distill
    seeded = replace(config, target=run.target, loop=replace(config.loop, seed=run.config.seed))
    try:
        distil(seeded, teacher, run.streams["train"], run.process, run.accelerator, folder, make_bar=run.clock.bar)
    except TrainingCollapsed as error:
        if run.accelerator.is_main_process:
            write_report_of_stopped_run(run, error)
        raise
    run.write_fingerprint(folder / "student")


def fit_discriminator(run: Run, folder: Path, seed: int) -> list[dict[str, float]]:
    """Fit the discriminator of guided sampling to the finished student in ``folder/student``; it goes to
    ``folder/student/discriminator``.

    Returns:
        The logged metrics.
    """
    student, _ = run.load_student(folder / "student")
    trainer = DiscriminatorTrainer(
        run.config.discriminator, run.load_teacher(), student, run.streams["train"], run.process, run.accelerator, seed
    )
    return trainer.fit(folder, make_bar=run.clock.bar)


def check_updates(run: Run) -> None:
    """Refuse the stage discriminator where it has nothing to do."""
    if not run.config.discriminator.updates:
        raise ValueError("nothing to fit: --discriminator.updates is 0")
    if reads_blocks(run.load_teacher()):
        raise ValueError(
            "guided sampling reads whole sequences, and the teacher reads by blocks; set --discriminator.updates 0"
        )
