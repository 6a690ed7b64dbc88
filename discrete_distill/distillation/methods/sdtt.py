"""Self-distillation through time (SDTT, arXiv 2410.21035): one step of the student replaces several of its teacher.

From a state ``x_t`` of corrupted data the teacher takes ``factor`` steps to time ``s``. Wherever it reveals a token,
what it predicted there, in the step that revealed it, is the student's target; where it reveals none, its last
prediction is. The student predicts at ``x_t`` alone. Then it becomes the teacher, of steps ``factor`` times as long,
and so on.

    loss = mean over masked i of  D( p_student(. | x_t, i),  p_teacher(. | x_{t_j(i)}, i) )

The forward KL has its minimum where the student is the *mean* target, ``E[ p_teacher(. | x_{t_j(i)}, i) | x_t ]``:
for a teacher whose predictions are conditionals of one joint distribution, that mean is its own prediction at ``x_t``
(a martingale), and nothing is to be learned. SDTT gains with it where the teacher is not of that kind; the other
targets prefer sharper students.

Shape suffixes: B batch, L length, V vocabulary, N masked positions, K teacher steps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from ...checks import check_all_counts
from ...distributed.parallel import unreplicated
from ...models.in_blocks import InBlocks
from ...process import MaskedDiffusion, StratifiedTime, evaluation_mode, logits_at
from ..divergence import token_divergence
from ..networks import Networks
from .data_method import DataMethod
from .method_config import MethodConfig
from .output import StepOutput
from .protocol import UpdatePlan
from .teacher_targets import TeacherTargets, teacher_targets

Target = Literal["forward", "reverse", "tv", "mse"]


@dataclass(kw_only=True)
class SDTTConfig(MethodConfig):
    """Configuration of `SDTT`.

    Args:
        teacher_steps: steps of the first teacher (paper: 1024).
        factor: teacher steps in one of the student's (paper: 2).
        rounds: how often the student becomes the teacher (paper: 7); the last student takes
            ``teacher_steps / factor ** rounds`` steps.
        target: divergence from the target: ``forward`` KL(teacher || student), ``reverse``, total variation ``tv``, or
            ``mse`` of log-probabilities (paper: all four).
        published: as the authors' code has it: the teacher's times are ``t u + (1 - t) s`` for ``u`` from 1 to 0, which
            start above ``t`` and end below ``s``, and ``tv`` is taken of log-probabilities. Correct are
            ``t u + (1 - u) s``, and probabilities.
        step_conditioning: pass the student where its step ends.

    Raises:
        ValueError: if a number is out of range, the rounds do not divide the steps, or the target is unknown.

    Examples:
        >>> config = SDTTConfig(teacher_steps=64, rounds=3)
        >>> [config.student_steps(index) for index in range(3)]
        [32, 16, 8]
    """

    teacher_steps: int = 1024
    factor: int = 2
    rounds: int = 7
    target: Target = "forward"
    published: bool = False
    step_conditioning: bool = False

    def __post_init__(self) -> None:
        check_all_counts(self, "teacher_steps", "factor", "rounds")
        if self.teacher_steps % self.factor**self.rounds:
            raise ValueError(
                f"{self.rounds} rounds of factor {self.factor} need teacher_steps that {self.factor**self.rounds} "
                f"divides, got {self.teacher_steps}"
            )
        if self.target not in get_args(Target):
            raise ValueError(f"target is one of {get_args(Target)}, got {self.target!r}")

    def student_steps(self, round_index: int) -> int:
        """Steps that the student of a round (0 is the first) takes from all mask to data."""
        return self.teacher_steps // self.factor ** (round_index + 1)

    def update_plan(self, *, discriminator: bool = False) -> UpdatePlan:
        """The student alone, in rounds, on corrupted reference sequences; a discriminator is not trained."""
        return UpdatePlan(order=("student",), reads_reference=("rollout",), rounds=self.rounds)

    def loss_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float]:
        """The teacher, ``factor`` times."""
        return float(self.factor * batch), 0.0


class SDTT(DataMethod[SDTTConfig]):
    """Self-distillation through time.

    Networks stay as they are given: neither ``requires_grad`` nor their mode is changed. The teacher is read in
    evaluation mode, the student trained in the mode that it is in. At the first step of a round after the first,
    `begin_step` replaces ``teacher`` by a frozen copy of the student.

    Args:
        networks: the student, and the teacher of the first round; see `make_networks`.
        process: mask and schedule.
        config: every choice.

    Raises:
        ValueError: if the student is to be passed its step and has no true attribute ``accepts_step``.

    Attributes:
        round: that ``teacher`` belongs to; 0 is the first.

    Examples:
        >>> method = SDTT(networks, process, SDTTConfig(teacher_steps=8, rounds=2))
        >>> for step in range(4):  # The student of the first two steps becomes the teacher of the others.
        ...     method.begin_step(step, num_steps=4)
        ...     rollout = method.rollout(reference=data, generator=generator)
        ...     method.loss("student", rollout).loss.backward()
        >>> method.round
        1
    """

    config_class = SDTTConfig
    takes_blocks = True

    def __init__(self, networks: Networks, process: MaskedDiffusion, config: SDTTConfig | None = None) -> None:
        super().__init__(networks, process, config if config is not None else SDTTConfig())
        self.round = 0

    def begin_step(self, step: int, num_steps: int, *, average: nn.Module | None = None) -> None:
        """Start a new round where ``step`` is the first of one; see `DistillationMethod`."""
        index = self.update_plan.round_of(step, num_steps)
        if index != self.round:
            self.start_round(index, self.student if average is None else average)

    def start_round(self, index: int, network: nn.Module) -> None:
        """Make a frozen copy of ``network``, the student of the round before or its average, the teacher of round
        ``index``.

        Raises:
            ValueError: if there is no such round.
        """
        if not 0 <= index < self.config.rounds:
            raise ValueError(f"there are {self.config.rounds} rounds, counted from 0; got {index}")
        view = network.denoiser if isinstance(network, InBlocks) else network
        teacher = copy.deepcopy(unreplicated(view)).requires_grad_(False).eval()
        self.teacher = InBlocks(teacher) if self.block_length else teacher
        self.round = index

    def corrupt(
        self,
        x_0: Tensor,
        *,
        generation_mask: Tensor | None,
        generator: Generator | None,
        reveal_step: Tensor | None = None,
        **given: Any,
    ) -> TeacherTargets:
        """The teacher's targets at the masks of corrupted sequences; see `targets`. The order of ``reveal_step`` is not
        read."""
        t, s = self.times(len(x_0), x_0.device, generator)
        x_t = self.process.corrupt(x_0, t, generation_mask=generation_mask, generator=generator)
        return self.targets(x_t, t, s, generation_mask=generation_mask, generator=generator, **given)

    def student_loss(
        self, rollout: TeacherTargets, *, num_tokens: Tensor | float | None = None, **given: Any
    ) -> StepOutput:
        """Compute the divergence of the student, in one step, from the teacher's targets of ``factor`` steps.

        Args:
            rollout: of this step.
            num_tokens: what the sum over masked positions is divided by: those of the whole batch where the rollout is
                a part of it, as a mean over processes. `TeacherTargets.num_tokens` by default.
            **given: the other keywords of `loss`; not read.
        """
        x_t, t, s = rollout.x_t, rollout.t, rollout.s
        logits_NV = logits_at(self.student, x_t, t, rollout.positions, s=s, model_kwargs=rollout.denoiser_kwargs())
        student_NV = self.process.masked_log_probs(logits_NV)
        if num_tokens is None:
            num_tokens = rollout.num_tokens()
        loss = self._divergence(student_NV, rollout.log_probs_NV).sum() / num_tokens
        entropy = -(student_NV.exp() * student_NV.clamp_min(-100.0)).sum() / num_tokens
        metrics = {
            "divergence": loss.detach(),
            "entropy": entropy.detach(),
            "round": torch.full_like(loss.detach(), float(self.round)),
        }
        return StepOutput(loss, metrics)

    def times(self, batch: int, device: torch.device, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Draw start and end of one student step for each sequence, ``[B]``: a step of the student's grid, stratified
        over the batch."""
        steps = self.config.student_steps(self.round)
        level = StratifiedTime().sample(batch, device=device, generator=generator).t
        index = (level * steps).long().clamp(max=steps - 1)
        return (index + 1).float() / steps, index.float() / steps

    def teacher_times(self, t: Tensor, s: Tensor) -> Tensor:
        """``[K + 1, B]``: the teacher's times from ``t`` down to ``s``; see ``published``."""
        u = torch.linspace(1.0, 0.0, self.config.factor + 1, device=t.device)[:, None]
        if self.config.published:
            return t * u + (1.0 - t) * s
        return t * u + (1.0 - u) * s

    def targets(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        generation_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> TeacherTargets:
        """Take the teacher's steps from ``x_t``. The target of a masked position is the prediction of the step that
        reveals it, or of the last step.

        Args:
            x_t: int64 ``[B, L]``.
            t: its times, ``[B]``.
            s: times of the end, ``[B]``.
            generation_mask: bool ``[B, L]``; masks elsewhere stay, and have no target. All real positions by default.
            attention_mask: bool ``[B, L]``, true at real tokens.
            generator: source of randomness.
            model_kwargs: passed to the teacher by keyword.

        Raises:
            ValueError: if the teacher's logits leave nothing to draw from: names sequence and position.
        """
        with evaluation_mode(self.teacher):
            return teacher_targets(
                self.process,
                self.teacher,
                x_t,
                self.teacher_times(t, s),
                t=t,
                s=s,
                generation_mask=generation_mask,
                attention_mask=attention_mask,
                generator=generator,
                model_kwargs=model_kwargs,
            )

    def _divergence(self, student_NV: Tensor, target_NV: Tensor) -> Tensor:
        if self.config.target in ("forward", "reverse"):
            return token_divergence(student_NV, target_NV, kind=self.config.target)
        if self.config.target == "tv" and not self.config.published:
            return token_divergence(student_NV, target_NV, kind="tv")
        words = torch.arange(student_NV.shape[1], device=student_NV.device) != self.process.mask_token_id
        difference = student_NV[:, words].clamp_min(-100.0) - target_NV[:, words].clamp_min(-100.0)
        return 0.5 * difference.abs().sum(1) if self.config.target == "tv" else difference.square().mean(1)

    def state_dict(self) -> dict[str, Any]:
        """Round, and from the second round on the teacher: what a resumed run needs in addition to the student."""
        return {"round": self.round, "teacher": self.teacher.state_dict() if self.round else None}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from `state_dict`; strict. The teacher of the first round is the caller's, and stays as it is."""
        if state["round"]:
            self.start_round(state["round"], self.student)
            self.teacher.load_state_dict(state["teacher"])
