"""The stages of the text recipe, tied together: each takes what it needs from the stages before it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.markdown import Markdown

from ...distributed.parallel import save_memory
from ...evaluation import Judge
from ...models import Discriminator, DiT, DiTConfig, guide_by_prior, load_discriminator
from ...process import MaskedDiffusion
from ...training import ParallelConfig, TrainingCollapsed, flat_settings, folder_lock, read_metrics
from ...training.stored_settings import Setting
from ..common.assets import BUNDLED, asset
from ..common.command_line import run_stages
from ..common.environment import describe_machine, make_accelerator, make_folder, matmul_precision
from ..common.files import read_json_object
from ..common.fingerprint import check_tokenizer, write_fingerprint
from ..common.results import read_results
from .corpus import TokenStream, load_streams, read_documents, split_documents
from .distill import SETTINGS_FILE, distil
from .evaluate import RESULTS, RESULTS_FILE, evaluate
from .guide import GUIDE_FOLDER, Guide
from .judge import train_judge
from .judge_loading import find_judge, load_judge_for
from .report import Frontier, frontier_table, headline, steps_table, write_report
from .sample import sample_text
from .settings import RecipeConfig
from .stopped_report import write_report_of_stopped_run
from .teacher import initial_network, load_teacher, teacher_location, train_teacher
from .tokenizer import TextTokenizer, gpt2_tokenizer, train_tokenizer

MAY_ROUND = ("teacher", "distill", "guide")
"""Stages that train, in which ``--matmul tf32`` is in force; the figures of a judge must not depend on it."""


class Pipeline:
    """One run: its settings, its folder, and its stages.

    Args:
        config: every setting.
        command: the command line, for the report.

    Raises:
        ValueError: if settings do not go together.
        OSError: if something named cannot be read, or the output cannot be written.
    """

    def __init__(self, config: RecipeConfig, command: str) -> None:
        self.config = config
        self.command = command
        if config.threads:
            torch.set_num_threads(config.threads)
        self.accelerator: Accelerator = make_accelerator(config.precision)
        self._tokenizer: TextTokenizer | None = None
        self._streams: dict[str, TokenStream] | None = None

    @property
    def directory(self) -> Path:
        """Where this run writes."""
        return self.config.directory

    @property
    def tokenizer(self) -> TextTokenizer:
        """The configured tokenizer; read, or trained on the text, once."""
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer(self.config.data.tokenizer)
        return self._tokenizer

    def _make_tokenizer(self, name: str) -> TextTokenizer:
        if name == BUNDLED:
            return TextTokenizer.load(asset("tokenizer.json"))
        if name == "train":
            documents = split_documents(read_documents(self.config.data.source))["train"]
            return train_tokenizer(documents, self.config.data.vocab_size)
        if name.endswith(".json"):
            if not Path(name).exists():
                raise FileNotFoundError(f"no tokenizer at {name}; give --data.tokenizer another path")
            return TextTokenizer.load(Path(name))
        return gpt2_tokenizer(name)

    @property
    def process(self) -> MaskedDiffusion:
        """Mask of the tokenizer, log-linear schedule."""
        return MaskedDiffusion(self.tokenizer.mask_token_id)

    @property
    def streams(self) -> dict[str, TokenStream]:
        """Token streams of the splits, tokenised once."""
        if self._streams is None:
            data = self.config.data
            cache = Path(data.cache) if data.cache else self.config.output / "tokens"
            with self.accelerator.main_process_first():  # One process writes the tokens, the others read them.
                self._streams = load_streams(data.source, self.tokenizer, data.length, cache)
        return self._streams

    def run(self, stage: str) -> None:
        """Check everything, then run one stage, or for "all" those of a distillation; or only say what would run."""
        stages: dict[str, Callable[[], None]] = {
            "teacher": self.train_teacher,
            "judge": self.train_judge,
            "distill": self.distil,
            "guide": self.guide,
            "sample": self.sample,
            "evaluate": self.evaluate,
            "report": self.report,
        }
        guide = ("guide",) if self.config.guide.updates else ()
        names = ("distill", *guide, "evaluate", "report") if stage == "all" else (stage,)

        def description() -> str:
            from ..common.dry_run import describe_run

            methods = {"distillation": self.config.distill}
            return describe_run(
                self.config,
                methods,
                names,
                self.accelerator,
                lambda: self.check(names),
                model=None if names == ("teacher",) else self.teacher_shape(),
            )

        def in_its_precision(name: str) -> Callable[[], None]:
            def run() -> None:
                with matmul_precision(self.config.matmul if name in MAY_ROUND else "exact"):
                    stages[name]()

            return run

        run_stages(
            {name: in_its_precision(name) for name in stages},
            names,
            check=lambda: self.check(names),
            description=description if self.config.dry_run else None,
            hold=nullcontext if stage == "sample" else self.hold,
        )

    def hold(self) -> AbstractContextManager[None]:
        """Keep other runs out of the folder; the first process does it for all."""
        return folder_lock(self.directory) if self.accelerator.is_main_process else nullcontext()

    def check(self, stages: tuple[str, ...]) -> None:
        """Look for everything that the stages will need, before the first of them starts or writes.

        Raises:
            ValueError: naming all that is missing or does not fit, each with its flag.
        """
        needs: list[Callable[[], Any]] = [lambda: self.tokenizer]
        if "guide" in stages:
            needs.append(self._check_guide)
        if "teacher" in stages and self.config.teacher.init:
            needs.append(self._check_initial)
        if {"distill", "guide", "evaluate"} & set(stages):
            needs.append(self.load_teacher)
        if "evaluate" in stages:
            needs.append(self._check_judge)
        if stages[0] in ("guide", "sample", "evaluate"):
            needs.append(self.load_student)
        if stages[0] == "report":
            needs.append(self._read_results)
        else:
            needs.append(lambda: make_folder(self.directory, only_check=True))
        problems = [problem for problem in map(_problem_of, needs) if problem]
        if not problems and stages[0] not in ("sample", "report"):
            problems = [problem for problem in [_problem_of(lambda: self.streams)] if problem]
        elif problems and not Path(self.config.data.source).exists() and self.config.data.source != BUNDLED:
            problems += [problem for problem in [_problem_of(self._read_text)] if problem]
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))

    def _read_text(self) -> list[str]:
        return read_documents(self.config.data.source)

    def train_teacher(self) -> None:
        """Train a teacher from nothing; it and the tokenizer go to ``teacher/``."""
        self._check_length(self.config.teacher.model.max_length)
        self._check_vocabulary(self.config.teacher.model.vocab_size, "--teacher.model.vocab-size")
        folder = make_folder(self.directory / "teacher")
        if self.accelerator.is_main_process:
            self.tokenizer.save(folder / "tokenizer.json")
        train_teacher(self.config.teacher, self.streams, self.process, self.accelerator, folder)
        self._write_fingerprint(folder)
        print(f"teacher: {folder}")

    def train_judge(self) -> None:
        """Train the small judge; it goes to ``judge/``."""
        self._check_vocabulary(self.config.judge.vocab_size, "--judge.vocab-size")
        if self.config.judge.eos_token_id != self.tokenizer.eos_token_id:
            raise ValueError(
                f"the judge is to end a text with token {self.config.judge.eos_token_id}, and the tokenizer does with "
                f"{self.tokenizer.eos_token_id}; give --judge.eos-token-id {self.tokenizer.eos_token_id}"
            )
        folder = make_folder(self.directory / "judge")
        train_judge(self.config.judge, self.streams, self.accelerator, folder)
        if self.accelerator.is_main_process:
            self.tokenizer.save(folder / "tokenizer.json")
        self._write_fingerprint(folder)
        print(f"judge: {folder}")

    def distil(self) -> None:
        """Distil the teacher; the student goes to ``student/``."""
        teacher = self.load_teacher()
        folder = make_folder(self.directory)
        self.config.distill.loop.seed = self.config.seed
        try:
            distil(self.config.distill, teacher, self.streams["train"], self.process, self.accelerator, folder)
        except TrainingCollapsed as error:
            if self.accelerator.is_main_process:
                self._report_stop(error)
            raise
        self._write_fingerprint(folder / "student")

    def _report_stop(self, error: TrainingCollapsed) -> None:
        write_report_of_stopped_run(
            error,
            read_metrics(self.directory),
            self.directory,
            title=f"Distillation: {self.config.name}",
            command=self.command,
            machine=describe_machine(self.accelerator),
            settings=flat_settings(self.config),
        )

    def guide(self) -> None:
        """Fit the discriminator that guides sampling to the finished student; it goes to ``student/discriminator``."""
        self.fit_guide(make_folder(self.directory), self.config.seed)

    def fit_guide(self, folder: Path, seed: int) -> list[dict[str, float]]:
        """The same for the student in ``folder``; returns the logged metrics."""
        student, _ = self.load_student(folder / "student")
        stream, teacher = self.streams["train"], self.load_teacher()
        return Guide(self.config.guide, teacher, student, stream, self.process, self.accelerator, seed).fit(folder)

    def load_teacher(self) -> DiT:
        """The teacher, checked against tokenizer and length."""
        path = self.config.teacher.path
        teacher = load_teacher(path)
        check_tokenizer(teacher_location(path), teacher.config.vocab_size, self.tokenizer, flag="--teacher.path")
        self._check_length(teacher.config.max_length)
        return teacher.to(self.accelerator.device)

    def teacher_shape(self) -> DiTConfig | None:
        """Shape of the teacher that is distilled; None if it cannot be had."""
        try:
            return self.load_teacher().config
        except (ValueError, OSError):
            return None

    def load_student(self, folder: Path | None = None) -> tuple[DiT, Discriminator | None]:
        """Student and discriminator of this run, or of another ``folder``.

        Raises:
            FileNotFoundError: if there is none yet.
        """
        folder = self.directory / "student" if folder is None else folder
        if not (folder / "model.safetensors").exists():
            raise FileNotFoundError(f"no student in {folder}; run the distill stage first, or name another --name")
        student = load_teacher(str(folder)).to(self.accelerator.device)
        check_tokenizer(folder, student.config.vocab_size, self.tokenizer, flag="--name")
        discriminator = None
        if (folder / "discriminator" / "model.safetensors").exists():
            discriminator = load_discriminator(folder / "discriminator").to(self.accelerator.device).eval()
        return student, discriminator

    def load_judge(self) -> Judge:
        """The shipped judge, one that the judge stage wrote, or a causal language model by folder or hub name."""
        return load_judge_for(self.config.judge.path, self.tokenizer, device=self.accelerator.device)

    def _check_judge(self) -> None:
        find_judge(self.config.judge.path)  # Needs no tokenizer: where both are missing, both are named.
        self.load_judge()

    def sample(self) -> None:
        """Print samples of the student."""
        if not self.accelerator.is_main_process:
            return
        student, discriminator = self.load_student()
        self._compile(student)
        sample_text(
            self.config.sample,
            self.config.evaluate,
            student,
            discriminator,
            self.process,
            self.tokenizer,
            self.config.data.length,
            self.accelerator,
            self.config.seed,
        )

    def evaluate(self) -> None:
        """Measure teacher and student; figures go to ``evaluation.json``."""
        teacher, judge = self.load_teacher(), self.load_judge()
        student, discriminator = self.load_student()
        self._compile(teacher, student)
        settings = self._settings_used()
        guidance = float(settings["distill.prior_guidance"] or 0.0)
        evaluate(
            self.config.evaluate,
            teacher,
            student,
            discriminator,
            self.process,
            judge,
            self.streams["heldout"].packed(1024).to(self.accelerator.device),
            self.accelerator,
            make_folder(self.directory),
            guided_teacher=guide_by_prior(teacher, guidance, self.process.mask_token_id) if guidance else None,
            provenance={
                "command": self.command,
                "machine": describe_machine(self.accelerator),
                "settings": settings,
            },
        )

    def _compile(self, *networks: DiT) -> None:
        """Compile the blocks, as in training; the names of weights do not change."""
        for network in networks:
            save_memory(network, ParallelConfig(compile_backend=self.config.distill.parallel.compile_backend))

    def _settings_used(self) -> dict[str, Setting]:
        """This command's settings, and those of the student, whose method may be of other kinds."""
        settings = flat_settings(self.config)
        file = self.directory / "student" / SETTINGS_FILE
        if file.exists():
            settings = {name: value for name, value in settings.items() if not name.startswith("distill.method")}
            settings |= {name: value for name, value in read_json_object(file).items() if name.startswith("distill.")}
        return settings

    def report(self) -> None:
        """Write ``report.md`` with its plots, and print the tables."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        results = self._read_results()
        path = write_report(
            results,
            read_metrics(self.directory),
            self.tokenizer,
            self.directory,
            guide_history=read_metrics(self.directory / GUIDE_FOLDER),
            title=f"Distillation: {self.config.name}",
            command=results.get("command", self.command),
            machine=results.get("machine", describe_machine(self.accelerator)),
            settings=results.get("settings", flat_settings(self.config)),
        )
        frontiers = [Frontier.from_dict(saved) for saved in results["frontiers"]]
        page = "\n\n".join(
            [steps_table(results), frontier_table(results, frontiers), "\n".join(headline(results, frontiers))]
        )
        Console().print(Markdown(page))
        for written in (path, self.directory / "student", self.directory / "metrics.jsonl"):
            print(written)

    def _read_results(self) -> dict[str, Any]:
        return read_results(self.directory / RESULTS_FILE, RESULTS)

    def _write_fingerprint(self, folder: Path) -> None:
        if self.accelerator.is_main_process:
            write_fingerprint(folder, self.tokenizer)
        self.accelerator.wait_for_everyone()

    def _check_initial(self) -> None:
        config = self.config.teacher
        network = initial_network(config)
        check_tokenizer(teacher_location(config.init), network.config.vocab_size, self.tokenizer, flag="--teacher.init")

    def _check_guide(self) -> None:
        if not self.config.guide.updates:
            raise ValueError("nothing to fit: --guide.updates is 0")

    def _check_vocabulary(self, vocab_size: int, flag: str) -> None:
        if vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"the model has {vocab_size} classes and the tokenizer {self.tokenizer.vocab_size} (mask included); "
                f"give {flag} and --data.tokenizer that belong together"
            )

    def _check_length(self, max_length: int) -> None:
        if self.config.data.length > max_length:
            raise ValueError(
                f"--data.length {self.config.data.length} is above the model's max_length {max_length}; shorten it"
            )


def _problem_of(need: Callable[[], Any]) -> str | None:
    """What is wrong with something that is needed, on one line, or None."""
    try:
        need()
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())
    return None
