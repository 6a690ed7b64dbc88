"""One run of a recipe: its folder, its corpus, its networks on disk, and the device that it computes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ...distributed.parallel import save_memory
from ...evaluation import measure_speeds
from ...models import TrunkDiscriminator, load_sampling
from ...process import FeatureDenoiser, MaskedDiffusion, UnmaskingOrder, evaluation_mode
from ...training import ParallelConfig, folder_lock
from .assets import resolve
from .corpus import TokenStream, load_streams
from .discriminator_files import read_discriminator
from .documents import read_documents
from .environment import describe_machine, make_accelerator
from .fingerprint import check_tokenizer, write_fingerprint
from .model_tokenizer import ModelTokenizer
from .network_shape import NetworkShape, network_shape
from .plain_sampler import plain_sampler
from .settings import RecipeConfig
from .stage_clock import StageClock
from .teacher import external_config, initial_network, load_network
from .tokenizer import TextTokenizer


class Run:
    """What the stages of a recipe share.

    Args:
        config: settings of the recipe; read when they are needed.
        command: the command line, for the report.
        make_tokenizer: called once, when the tokenizer is first needed.
        bundled_text: file that ships with the package, for ``--data.source bundled``.
        bundled_teacher: folder that ships with the package, for ``--teacher.path bundled``.

    Raises:
        ValueError: if the launcher and accelerate disagree about the number of processes.

    Attributes:
        accelerator: device, precision and processes.
        clock: expected times of the stages that are run.
    """

    def __init__(
        self,
        config: RecipeConfig,
        command: str,
        make_tokenizer: Callable[[], TextTokenizer],
        *,
        bundled_text: str = "sotu.txt.xz",
        bundled_teacher: str = "teacher",
    ) -> None:
        self.config = config
        self.command = command
        self.make_tokenizer = make_tokenizer
        self.bundled_text = bundled_text
        self.bundled_teacher = bundled_teacher
        if config.threads:
            torch.set_num_threads(config.threads)
        self.accelerator: Accelerator = make_accelerator(config.precision)
        self.clock = StageClock()

    @property
    def directory(self) -> Path:
        """Where this run writes."""
        return self.config.directory

    @property
    def machine(self) -> str:
        """One line for reports."""
        return describe_machine(self.accelerator)

    @property
    def fits_discriminator(self) -> bool:
        """Whether the student will have a discriminator, for guided samples."""
        return self.config.distill.discriminator or self.config.discriminator.updates > 0

    @property
    def source(self) -> str:
        """The corpus: a path, or a data set's name."""
        return resolve(self.config.data.source, self.bundled_text)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the corpus, made once."""
        return self.make_tokenizer()

    @property
    def process(self) -> MaskedDiffusion:
        """Mask and forbidden ids of the tokenizer, log-linear schedule."""
        return MaskedDiffusion(self.tokenizer.mask_token_id, forbidden_token_ids=self.tokenizer.forbidden_token_ids)

    @cached_property
    def streams(self) -> dict[str, TokenStream]:
        """Token streams of the splits of the corpus, tokenised once."""
        with self.accelerator.main_process_first():  # One process writes the tokens, the others read them.
            return self.streams_of(self.source)

    def streams_of(self, source: str) -> dict[str, TokenStream]:
        """Token streams of the splits of any text, in the tokens and at the length of this run."""
        data = self.config.data
        cache = Path(data.cache) if data.cache else self.config.output / "tokens"
        return load_streams(source, self.tokenizer, data.length, cache)

    def documents(self) -> list[str]:
        """The corpus before it is split and tokenised.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it cannot be read.
        """
        return read_documents(self.source)

    def hold(self) -> AbstractContextManager[None]:
        """Keep other runs out of the folder; the first process does it for all."""
        return folder_lock(self.directory) if self.accelerator.is_main_process else nullcontext()

    def teacher_location(self, path: str) -> str:
        """Where the weights of a teacher are: ``path``, or the folder of the shipped one."""
        return resolve(path, self.bundled_teacher)

    def load_teacher(self) -> Any:
        """The teacher of ``--teacher.path``, a `DiT` or a Hugging Face model behind `as_denoiser`, on the device.

        It is checked against tokenizer and length.
        """
        location = self.teacher_location(self.config.teacher.path)
        teacher = load_network(location, **self.config.teacher.called())
        if isinstance(self.tokenizer, ModelTokenizer) and external_config(location) is None:
            raise ValueError(
                f"--teacher.init {self.config.teacher.init} is a Hugging Face model with a tokenizer of its own, and "
                f"--teacher.path {self.config.teacher.path} is none; train it by the stage teacher, then name its "
                "folder as --teacher.path"
            )
        shape = network_shape(teacher)
        if not isinstance(self.tokenizer, ModelTokenizer):  # which was read beside the teacher itself
            check_tokenizer(location, shape.vocab_size, self.tokenizer, flag="--teacher.path")
        elif shape.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"the config.json of {location} states {self.tokenizer.vocab_size} classes, and its weights have "
                f"{shape.vocab_size}"
            )
        self.check_length(shape.max_length)
        return teacher.to(self.accelerator.device)

    @property
    def target(self) -> str:
        """Folder of the autoregressive network whose distribution the student is to have; empty where there is none."""
        config = self.config.distill
        return config.target or (str(self.directory / "teacher") if config.learns_target else "")

    def seconds_per_evaluation(self, teacher: Any) -> float:
        """Time a pass of one sequence in a batch through the teacher.

        Without its head where that is known: samplers read few rows of logits, and a batch of all of them is large.
        """
        x = self.streams["heldout"].packed(self.config.evaluate.batch_size).to(self.accelerator.device)
        t = torch.full((len(x),), 0.5, device=x.device)
        with torch.no_grad(), evaluation_mode(teacher), self.accelerator.autocast():
            call = teacher.features if isinstance(teacher, FeatureDenoiser) else teacher
            speeds = measure_speeds({"pass": lambda: call(x, t)}, repeats=3, device=x.device)
        return speeds["pass"].latency / len(x)

    def teacher_shape(self) -> NetworkShape | None:
        """Shape of the teacher that is distilled; None if it cannot be had."""
        try:
            return network_shape(self.load_teacher())
        except (ValueError, OSError):
            return None

    def initial_shape(self) -> NetworkShape | None:
        """Shape of what the stage teacher would train; None if it cannot be had."""
        config = self.config.teacher
        if not config.init:
            return network_shape(config.model)
        try:
            return network_shape(initial_network(config, self.teacher_location(config.init)))
        except (ValueError, OSError):
            return None

    def load_student(self, folder: Path | None = None) -> tuple[Any, TrunkDiscriminator | None]:
        """Student and discriminator of this run, or of another ``folder``, on the device."""
        folder = self.directory / "student" if folder is None else folder
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"no student in {folder}; run the distill stage first, or name another --name")
        student = load_network(str(folder), **self.config.teacher.called()).to(self.accelerator.device)
        check_tokenizer(folder, network_shape(student).vocab_size, self.tokenizer, flag="--name")
        discriminator = read_discriminator(folder / "discriminator", self.load_teacher)
        return student, None if discriminator is None else discriminator.to(self.accelerator.device)

    @property
    def student_order(self) -> UnmaskingOrder:
        """The order in which the student of this run is sampled, that of its paths."""
        try:
            return load_sampling(self.directory / "student").order
        except FileNotFoundError:
            return "random"

    def compile(self, *networks: nn.Module) -> None:
        """Compile the blocks, as in training; the names of weights do not change."""
        for network in networks:
            save_memory(network, ParallelConfig(compile_backend=self.config.distill.parallel.compile_backend))

    def write_fingerprint(self, folder: Path) -> None:
        """Record beside a network which tokenizer it was trained with; all processes call it, the first one writes."""
        if self.accelerator.is_main_process:
            write_fingerprint(folder, self.tokenizer)
        self.accelerator.wait_for_everyone()

    def check_length(self, max_length: int | None) -> None:
        """Refuse sequences that are longer than a network reads, where that is known."""
        if max_length is not None and self.config.data.length > max_length:
            raise ValueError(
                f"--data.length {self.config.data.length} is above the model's max_length {max_length}; shorten it"
            )

    def check_steps(self, teacher: Any) -> None:
        """Refuse numbers of steps in which teacher and student cannot be sampled; see `plain_sampler`.

        Raises:
            ValueError: if they read by blocks, and there are fewer steps than blocks.
        """
        evaluate = self.config.evaluate
        for steps in (*evaluate.steps, *evaluate.teacher_steps):
            plain_sampler(self.process, teacher, self.config.data.length, num_steps=steps)

    def check_vocabulary(self, vocab_size: int, flag: str) -> None:
        """Refuse a network to be made whose number of classes is not the tokenizer's."""
        if vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"the model has {vocab_size} classes and the tokenizer {self.tokenizer.vocab_size} (mask included); "
                f"give {flag} and --data.tokenizer that belong together"
            )
