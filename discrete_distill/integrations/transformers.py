"""Distillation methods in the `Trainer` of transformers: ``train()``, logging, saving and resuming as in any `Trainer`.

The Trainer owns the student's optimiser and schedule. Those of the ratio networks (discriminator, auxiliary denoiser)
are kept here; their state is saved with the Trainer's in every ``checkpoint-N/``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from ..checks import check_count, check_number
from ..distillation.methods import DiDiInstructConfig, DistillationMethod, MethodConfig
from ..distillation.networks import Networks
from ..distillation.rollout import DrawnBatch
from ..distillation.trajectories import Trajectories
from ..distributed.collectives import mean_over_processes
from ..distributed.processes import agree
from ..models import DiT, InBlocks, TrunkDiscriminator
from ..process import MaskedDiffusion
from ..samplers import Frame
from ..training import BatchPart, DistillationStep, LoopConfig, ModuleOptimizer, OptimizerConfig, step_generator
from ..training.metrics import MetricWindow, on_the_host
from .checkpoint_folders import STATE_FILE, save_network
from .checkpointing_trainer import CheckpointingTrainer
from .collapse_callback import CollapseCallback
from .trainer_parts import NoData, OpenConfig, WrappedStudent
from .training_arguments import DiDiInstructTrainingArguments

SKIP_LIMIT = LoopConfig.skip_limit
NO_EVALUATION = "there is no loss to evaluate a student by; sample from averaged_student and measure the samples"


class DiDiInstructTrainer(CheckpointingTrainer):
    """Distils ``teacher`` into ``model``.

    ``per_device_train_batch_size`` counts sequences. A data set is needed where the method reads data, as SDTT and a
    discriminator do, or to distil a conditional model: its rows have ``input_ids`` ``[L]``, and optionally
    ``prompt_mask`` (true where a token is given) and ``attention_mask`` (false at padding, which is neither generated
    nor learnt from); a `TrajectoryStore` is such a data set. With a prompt or padding, the first row of each group
    stands for the whole group.

    Under ``gradient_accumulation_steps`` the gradient is that of all micro-batches of a step together: advantages are
    scaled over all of them, losses are divided by the tokens generated in all of them, and ratio networks have one
    update a step. Each path is then evaluated twice. A step whose loss or gradient is not finite on any process changes
    neither weights, optimiser, schedule nor average of the student, and is counted in ``student_skipped_updates``.

    In the warm-up of ``config.log_ratio`` only the ratio networks are trained: the student has no update of
    its optimiser, of its learning-rate schedule or of its moving average, and its schedule ends with the last step.

    Args:
        model: the student, a denoiser; see `DiDiInstruct.make_student`.
        args: see `DiDiInstructTrainingArguments`.
        teacher: frozen.
        process: mask and schedule.
        config: of any method of the library, such as `DiDiInstructConfig` (the default) or `SDTTConfig`.
        discriminator: a `RatioNetwork`, or None.
        auxiliary: denoiser that follows the student, or None.
        target: autoregressive network whose distribution the student is to have, or None; see `make_networks`.
        train_dataset: see above.
        **kwargs: of `Trainer`.

    Raises:
        ValueError: if the group size does not divide the batch, or a discriminator has no data to compare with;
            or FSDP, DeepSpeed or evaluation is configured.
        TypeError: if the student is a model of transformers itself, not a denoiser made of one.

    Examples:
        >>> from discrete_distill.integrations.transformers import DiDiInstructTrainingArguments
        >>> args = DiDiInstructTrainingArguments("run", max_steps=1, per_device_train_batch_size=8, report_to="none")
        >>> networks = {"teacher": teacher, "discriminator": discriminator}
        >>> rows = [{"input_ids": each} for each in data]
        >>> DiDiInstructTrainer(student, args, process=process, train_dataset=rows, **networks).train().global_step
        {'train_runtime': ...}
        1
    """

    def __init__(
        self,
        model: nn.Module,
        args: DiDiInstructTrainingArguments,
        *,
        teacher: nn.Module,
        process: MaskedDiffusion,
        config: MethodConfig | None = None,
        discriminator: nn.Module | None = None,
        auxiliary: nn.Module | None = None,
        target: nn.Module | None = None,
        train_dataset: Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        self.config: MethodConfig = config or DiDiInstructConfig()
        batch_size = args.per_device_train_batch_size
        if batch_size % self.config.group_size:
            raise ValueError(
                f"group_size {self.config.group_size} does not divide per_device_train_batch_size {batch_size}"
            )
        if isinstance(model, PreTrainedModel):
            raise TypeError(f"a {type(model).__name__} is called with keywords of its own: give as_denoiser(model)")
        if args.eval_strategy != "no":
            raise ValueError(f'eval_strategy="{args.eval_strategy}": {NO_EVALUATION}')
        if args.fsdp or args.deepspeed:
            raise ValueError(
                "FSDP and DeepSpeed are not supported by this Trainer, whose ratio networks it would not shard; take "
                "DDP, or discrete_distill.recipes.owt with --distill.parallel.strategy fsdp"
            )
        plan = self.config.update_plan(discriminator=discriminator is not None)
        if plan.reads_reference and train_dataset is None:
            raise ValueError("the method reads data; give train_dataset with rows of input_ids")
        check_count("discriminator_every", args.discriminator_every)
        length: Any = args.length
        if not isinstance(length, Frame):
            check_count("length", length)
        check_count("ratio_warmup_steps", args.ratio_warmup_steps, minimum=0)
        check_number("ema_decay", args.ema_decay, minimum=0.0, exclusive_maximum=1.0)
        if train_dataset is None and args.max_steps < 1:
            raise ValueError(f"max_steps is {args.max_steps}; without a data set it must say how long to train")
        if train_dataset is None:
            rows = args.max_steps * batch_size * args.gradient_accumulation_steps * args.world_size
            train_dataset = NoData(rows)
        teacher = teacher.to(args.device)
        discriminator, auxiliary = (
            each if each is None else each.to(args.device) for each in (discriminator, auxiliary)
        )
        self.ratio_networks = {"discriminator": discriminator, "auxiliary": auxiliary}
        self.module_optimizers: dict[str, ModuleOptimizer] = {}
        self.average: AveragedModel | None = None
        self._window = MetricWindow()
        self._step: DistillationStep | None = None
        self._batches: list[dict[str, Any]] = []
        self.skipped = 0
        watch = CollapseCallback(args.stop_on_collapse)
        kwargs.setdefault("data_collator", default_data_collator)
        if isinstance(model, DiT):
            model.config = OpenConfig(**asdict(model.config))
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        self.add_callback(watch)
        self.model_accepts_loss_kwargs = False  # The loss is a mean, so micro-batches are averaged.
        if args.ema_decay:
            self.average = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay), use_buffers=False
            )
            self.add_callback(_MovingAverage(self))
        self.teacher, self.process = teacher, process
        self.target = target if target is None else target.to(args.device)
        self.method = self._make_method(self.ratio_networks)

    def _make_method(self, ratio_networks: Mapping[str, nn.Module | None]) -> DistillationMethod:
        kind: Any = self.config.method_class
        networks = Networks(self.model, self.teacher, target=self.target, **ratio_networks)
        return kind(networks, self.process, self.config)

    @property
    def averaged_student(self) -> nn.Module:
        """The network to sample from: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(NO_EVALUATION)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The student's, over the steps behind the warm-up of the ratio; the ratio networks get theirs too."""
        if not self.module_optimizers:
            self._make_ratio_optimizers(num_training_steps)
        given, warmup = self.lr_scheduler is not None, self.method.update_plan.warmup
        scheduler = super().create_scheduler(max(num_training_steps - warmup, 1), optimizer)
        if not given and isinstance(scheduler, LambdaLR):
            scheduler.lr_lambdas = [_delayed(each, warmup) for each in scheduler.lr_lambdas]
        return scheduler

    def _make_ratio_optimizers(self, num_training_steps: int) -> None:
        settings = OptimizerConfig(
            learning_rate=self.args.ratio_learning_rate,
            warmup_steps=self.args.ratio_warmup_steps,
            gradient_clip=self.args.max_grad_norm or 0.0,
        )
        every = {"discriminator": self.args.discriminator_every}
        updates = self.method.update_plan.planned_updates(num_training_steps, every=every)
        self.module_optimizers = {
            name: ModuleOptimizer(network, settings, updates[name], self.accelerator)
            for name, network in self.ratio_networks.items()
            if network is not None and name in updates
        }
        if self.args.world_size > 1:  # The method calls the networks that exchange their gradients.
            self.method = self._make_method(
                {name: module_optimizer.network for name, module_optimizer in self.module_optimizers.items()}
            )

    def compute_loss_context_manager(self) -> Any:
        """Nothing: each call of the method has an autocast of its own, since an autocast keeps the weights that it has
        cast, and the ratio networks are updated between calls."""
        return nullcontext()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the next step; they are one batch to the method."""
        batches, number_of_items = super().get_batch_samples(*args, **kwargs)
        self._batches, self._step = list(batches), None
        return batches, number_of_items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch of a step; see `DistillationStep`. The networks that precede the student are updated before
        the first, those that follow it after the last.

        Raises:
            TrainingDiverged: if too many steps in a row were skipped.
        """
        model.train()
        step = self._step
        if step is None:
            step = self._step = self._begin_step(model, inputs)
        if not step.updates_student:  # No gradient, so that the optimiser leaves every weight as it is.
            loss = self.compute_loss(model, self._prepare_inputs(inputs)).detach() / len(step.parts)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        step.losses.append(loss)
        if len(step.losses) == len(step.parts):
            self._end_step(step)
            self._step = None
        return loss

    def _begin_step(self, model: nn.Module, first: dict[str, Any]) -> DistillationStep:
        """Draw the rollouts of all micro-batches, and update the networks that precede the student."""
        student = model if model is self.model else WrappedStudent(model, self.model)
        self.method.student = InBlocks(student) if isinstance(self.method.student, InBlocks) else student
        batches, index = self._batches or [first], self.state.global_step
        parts = [self._part(number, self._prepare_inputs(batch)) for number, batch in enumerate(batches)]
        skipped = ("discriminator",) if index % self.args.discriminator_every else ()
        step = DistillationStep(
            self.method, self.module_optimizers, self.accelerator, parts, index,
            num_steps=self.state.max_steps, average=self.averaged_student, skipped=skipped,
        )  # fmt: skip
        step.begin()
        return step

    def _part(self, number: int, inputs: dict[str, Any]) -> BatchPart:
        paths, reference = self._paths(inputs)
        data: Any = reference if self.method.update_plan.rollout_reads_reference else None
        if (
            data is not None and "reveal_step" in inputs
        ):  # A row of a TrajectoryStore says what was given or is padding.
            data, paths = Trajectories(inputs["input_ids"], inputs["reveal_step"]), {}

        def draw(generator: Generator, tokens: Tensor | None) -> DrawnBatch:
            given = {"reference": data, "generator": generator, "tokens": tokens, **paths}
            return self.method.rollout(device=self.args.device, **given)

        return BatchPart(draw=draw, reference=lambda: reference, generator=self._generator(number))

    def _end_step(self, step: DistillationStep) -> None:
        step.finish()
        self.optimizer._is_overflow = False
        if step.updates_student and not self._is_finite(step):
            self.skipped += 1
            self.model.zero_grad(set_to_none=True)  # The optimiser leaves every weight as it is,
            self.optimizer._is_overflow = True  # and accelerate the schedule.
        self._window.add({**on_the_host([step.metrics()])[0], "student_skipped_updates": float(self.skipped)})
        self._window.check_divergence(self.state.global_step + 1, self.state.max_steps, SKIP_LIMIT)

    def _is_finite(self, step: DistillationStep) -> bool:
        """Whether losses and gradients are, on all processes."""
        gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
        finite = torch.stack([each.isfinite().all() for each in (*step.losses, *gradients)]).all()
        return float(mean_over_processes(finite.float())) == 1.0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The student's loss of the next micro-batch of this step."""
        step = self._step
        if step is None or step.is_taught:
            self._batches = []
            step = self._step = self._begin_step(model, inputs)
        with torch.set_grad_enabled(step.updates_student):
            rollout, loss = step.student_loss()
        return (loss, {"rollout": rollout}) if return_outputs else loss

    def _generator(self, part: int) -> Generator:
        """A function of seed, step, micro-batch and rank alone, so that a resumed run draws what it would have
        drawn."""
        number = self.state.global_step * self.args.gradient_accumulation_steps + part
        return step_generator(self.args.seed, number, rank=self.args.process_index, device=self.args.device)

    def _paths(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """Arguments of a rollout, and the reference that belongs to it."""
        if "input_ids" not in inputs:
            size = self.args.per_device_train_batch_size
            return {"batch_size": size, "length": self.args.length}, torch.empty(0)
        rows = inputs["input_ids"]
        if len(rows) % self.config.group_size:
            raise ValueError(
                f"the last batch has {len(rows)} rows, not whole groups of {self.config.group_size}; "
                "set dataloader_drop_last=True"
            )
        real, given = inputs.get("attention_mask"), inputs.get("prompt_mask")
        if given is None and (real is None or bool(real.all())):
            return {"batch_size": len(rows), "length": rows.shape[1]}, rows
        rows = self._first_of_groups(rows)
        kept = torch.zeros_like(rows, dtype=torch.bool) if given is None else self._first_of_groups(given).bool()
        mask = self.process.mask_token_id
        if real is None:
            return {"x_init": torch.where(kept, rows, mask)}, rows
        real = self._first_of_groups(real).bool()
        return {"x_init": torch.where(kept | ~real, rows, mask), "attention_mask": real}, rows

    def _first_of_groups(self, values: Tensor) -> Tensor:
        """The first row of each group, in the place of each of its rows."""
        return values[:: self.config.group_size].repeat_interleave(self.config.group_size, dim=0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The method's metrics, averaged since the last line, go with the Trainer's own.

        Raises:
            TrainingCollapsed: see ``stop_on_collapse`` of `DiDiInstructTrainingArguments`.
        """
        if "loss" in logs:
            logs = {**logs, **agree(self._window.flush(), False, self.args.device)[0]}
        super().log(logs, start_time)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {name: module_optimizer.state_dict() for name, module_optimizer in self.module_optimizers.items()}
            average = None if self.average is None else self.average.state_dict()
            more = {"skipped": self.skipped, "window": self._window.state_dict(), "method": self.method.state_dict()}
            torch.save({"module_optimizers": state, "average": average, **more}, Path(output_dir) / STATE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint) / STATE_FILE
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing: {checkpoint} is no checkpoint of a DiDiInstructTrainer")
        saved = torch.load(file, map_location="cpu", weights_only=True)
        for name, module_optimizer in self.module_optimizers.items():
            module_optimizer.load_state_dict(saved["module_optimizers"][name])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.method.load_state_dict(saved["method"])
        self.skipped = saved["skipped"]
        self._window.load_state_dict(saved["window"])

    def save_student(self, directory: str | Path) -> None:
        """What is used after training: the averaged student, and in ``discriminator/`` the discriminator; low-rank
        weights are merged. External students are read back by `load_denoiser`."""
        if not self.args.should_save:
            return
        save_network(self.averaged_student, directory)
        discriminator: Any = self.ratio_networks["discriminator"]
        if isinstance(discriminator, TrunkDiscriminator):
            discriminator.save_pretrained(Path(directory) / "discriminator")
        elif discriminator is not None:
            save_network(discriminator, Path(directory) / "discriminator")


class _MovingAverage(TrainerCallback):
    """Moves the average once an update of the student."""

    def __init__(self, trainer: DiDiInstructTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        skipped = self.trainer.accelerator.optimizer_step_was_skipped
        moved = not skipped and self.trainer.method.update_plan.updates_student(state.global_step - 1)
        if self.trainer.average is not None and moved:
            self.trainer.average.update_parameters(kwargs["model"])


def _delayed(rate: Callable[[int], float], steps: int) -> Callable[[int], float]:
    """The same schedule, begun after so many steps."""
    return lambda step: rate(max(step - steps, 0))
