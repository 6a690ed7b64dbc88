"""Self-distillation through time (SDTT, arXiv 2410.21035): one step of the student replaces several of its teacher.

From a state ``x_t`` of corrupted data the teacher takes ``factor`` steps to time ``s``. Wherever it reveals a token,
what it predicted there, in the step that revealed it, is the student's target; where it reveals none, its last
prediction is. The student answers at ``x_t`` alone. Then it becomes the teacher, of steps ``factor`` times as long, and
so on.

    loss = mean over masked i of  D( p_student(. | z_t, i),  p_teacher(. | z_{t_j(i)}, i) )

The forward KL has its least value where the student is the *mean* target, ``E[ p_teacher(. | z_{t_j(i)}, i) | x_t ]``:
for a teacher whose answers are conditionals of one joint distribution that mean is its own answer at ``x_t`` (a
martingale), and nothing is to be learned. What SDTT gains with it, it gains where the teacher is not of that kind; the
other targets prefer sharper students.

Shape suffixes: B batch, L length, V vocabulary, N masked rows, K teacher steps.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn

from ...checks import check_all_counts
from ...distributed.collectives import mean_over_processes
from ...models.step_conditioning import trainable_copy
from ...process import Denoiser, MaskedDiffusion, StratifiedTime, evaluation_mode, logits_at
from ...samplers.rows import Rows, rows_at
from ...samplers.state import SamplerState
from ..divergence import token_divergence
from .networks import check_accepts_step
from .output import StepOutput

Target = Literal["forward", "reverse", "tv", "mse"]


@dataclass(kw_only=True)
class SDTTConfig:
    """Choices of SDTT.

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
        step_conditioning: tell the student where its step ends.

    Raises:
        ValueError: if a number is out of range, the rounds do not divide the steps, or the target is unknown.
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

    def round_of(self, step: int, num_steps: int) -> int:
        """Which round a training step belongs to, when ``num_steps`` are shared out equally."""
        return min(step * self.rounds // max(num_steps, 1), self.rounds - 1)


class Targets(NamedTuple):
    """What the teacher says at the masked positions of a state.

    Attributes:
        rows: flattened positions, int64 ``[N]``, ascending.
        log_probs_NV: fp32, -inf at the mask.
        x_s: the teacher's state at the end, int64 ``[B, L]``.
    """

    rows: Tensor
    log_probs_NV: Tensor
    x_s: Tensor


class SDTT:
    """The method: networks, configuration, and the round it is in. No optimiser, no device. The networks stay as they
    are given; the teacher is read in evaluation mode, the student trained in the mode that it is in.

    Args:
        student: denoiser that is trained.
        teacher: any denoiser, of the first round; never given a gradient.
        process: mask and schedule.
        config: every choice.

    Raises:
        ValueError: if the student is to be told its step and has no true attribute ``accepts_step``.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Denoiser,
        process: MaskedDiffusion,
        config: SDTTConfig | None = None,
    ) -> None:
        self.config = config if config is not None else SDTTConfig()
        if self.config.step_conditioning:
            check_accepts_step(student, "student", "step_conditioning")
        self.student = student
        self.teacher: Any = teacher
        self.process = process
        self.round = 0

    @staticmethod
    def make_student(teacher: Denoiser, config: SDTTConfig) -> nn.Module:
        """A copy of the teacher, trainable and in evaluation mode, told its step if so configured; its first answers
        are the teacher's."""
        return trainable_copy(teacher, step_conditioning=config.step_conditioning)

    def start_round(self, index: int, network: nn.Module) -> None:
        """Make ``network``, the student of the round before (or its moving average), the teacher of round ``index``.

        Raises:
            ValueError: if there is no such round.
        """
        if not 0 <= index < self.config.rounds:
            raise ValueError(f"there are {self.config.rounds} rounds, counted from 0; got {index}")
        self.teacher = copy.deepcopy(network).requires_grad_(False).eval()
        self.round = index

    def loss(
        self,
        x: Tensor,
        *,
        generation_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        num_tokens: Tensor | float | None = None,
        **cond: Any,
    ) -> StepOutput:
        """Divergence of the student, in one step, from what the teacher says in ``factor`` of them.

        Args:
            x: clean tokens of data, int64 ``[B, L]``.
            generated: bool ``[B, L]``, positions that may be masked (all, by default).
            attention_mask: bool ``[B, L]``, true at real tokens.
            generator: source of randomness.
            num_tokens: what the sum over masked positions is divided by: those of the whole batch where ``x`` is a part
                of it, as a mean over processes. Those of ``x`` on all processes by default.
            **cond: passed to both networks.

        Raises:
            ValueError: if the batch is empty, or the teacher's logits leave nothing to draw from: names sequence and
                position.
        """
        if not x.numel():
            raise ValueError(f"data of {list(x.shape)} tokens: give one sequence and one token or more")
        t, s = self.times(len(x), x.device, generator)
        if attention_mask is not None:
            generation_mask = (
                attention_mask.bool() if generation_mask is None else generation_mask & attention_mask.bool()
            )
        x_t = self.process.corrupt(x, t, generation_mask=generation_mask, generator=generator)
        return self.loss_at(
            x_t,
            t,
            s,
            generation_mask=generation_mask,
            attention_mask=attention_mask,
            generator=generator,
            num_tokens=num_tokens,
            **cond,
        )

    def loss_at(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        generation_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        num_tokens: Tensor | float | None = None,
        **cond: Any,
    ) -> StepOutput:
        """`loss` at given states and times ``[B]``; masks that are not ``generation_mask`` are no part of it."""
        targets = self.targets(
            x_t, t, s, generation_mask=generation_mask, attention_mask=attention_mask, generator=generator, **cond
        )
        kwargs = cond if attention_mask is None else {**cond, "attention_mask": attention_mask}
        logits_NV = logits_at(self.student, x_t, t, targets.rows, s=s, **kwargs)
        student_NV = self.process.masked_log_probs(logits_NV)
        divergence_N = self._divergence(student_NV, targets.log_probs_NV)
        if num_tokens is None:
            num_tokens = mean_over_processes(t.new_tensor(float(len(divergence_N)))).clamp(min=1.0)
        loss = divergence_N.sum() / num_tokens
        entropy = -(student_NV.exp() * student_NV.clamp_min(-100.0)).sum() / num_tokens
        metrics = {
            "divergence": loss.detach(),
            "entropy": entropy.detach(),
            "round": torch.tensor(float(self.round)),
        }
        return StepOutput(loss, metrics)

    def times(self, batch: int, device: torch.device, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Start and end of one student step for each row, ``[B]``: a step of its own grid, spread over the batch."""
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

    @torch.no_grad()
    def targets(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        generation_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: Generator | None = None,
        **cond: Any,
    ) -> Targets:
        """Walk the teacher from ``x_t``, and keep what it said of every masked position when it was revealed, or last.

        Args:
            x_t: int64 ``[B, L]``.
            t: its times, ``[B]``.
            s: times of the end, ``[B]``.
            generated: bool ``[B, L]``; masks elsewhere stay. All real positions by default.
            attention_mask: bool ``[B, L]``, true at real tokens.
            generator: source of randomness.
            **cond: passed to the teacher.
        """
        state = SamplerState(
            self.process,
            self.teacher,
            x_init=x_t,
            attention_mask=attention_mask,
            generation_mask=generation_mask,
            model_kwargs=cond,
            generator=generator,
        )
        wanted = rows_at(state.masked()).index
        said: list[tuple[Tensor, Tensor]] = []
        times = self.teacher_times(t, s)
        for step in range(self.config.factor):
            masked = state.masked()
            reveals = state.unmask_draws(step, self.process.unmask_probability(times[step], times[step + 1])) & masked
            rows = rows_at(masked if step + 1 == self.config.factor else reveals)
            if not rows:
                continue
            logits_RV = self._read_teacher(state, rows, times[step], times[step + 1])
            said.append((rows.index, self.process.masked_log_probs(logits_RV)))
            shown = reveals.flatten()[rows.index]
            drawn = state.draw_tokens(logits_RV[shown], rows.index[shown], step)
            state.write(rows.index[shown], drawn.tokens[:, 0], drawn.log_probs[:, 0])
        if not said:  # Nothing was masked; the teacher is asked for the size of its vocabulary.
            no_rows = Rows(wanted, torch.zeros(1, dtype=torch.long, device=x_t.device), wanted)
            said.append((wanted, self.process.masked_log_probs(self._read_teacher(state, no_rows, t, s))))
        wrong = state.log_probs.isnan()
        if bool(wrong.any()):
            sequence, position = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"sequence {sequence}, position {position}: the teacher's logits hold NaN or +inf, or no token is "
                "possible, so there is no token to draw"
            )
        index, log_probs_NV = (torch.cat(parts) for parts in zip(*said, strict=True))
        return Targets(wanted, log_probs_NV[index.argsort()], state.tokens)

    def _read_teacher(self, state: SamplerState, rows: Rows, t: Tensor, s: Tensor) -> Tensor:
        with evaluation_mode(self.teacher):
            return state.logits(rows, t, s, one_time=False)(slice(None))

    def _divergence(self, student_NV: Tensor, target_NV: Tensor) -> Tensor:
        if self.config.target in ("forward", "reverse"):
            return token_divergence(student_NV, target_NV, kind=self.config.target)
        if self.config.target == "tv" and not self.config.published:
            return token_divergence(student_NV, target_NV, kind="tv")
        words = torch.arange(student_NV.shape[1], device=student_NV.device) != self.process.mask_token_id
        difference = student_NV[:, words].clamp_min(-100.0) - target_NV[:, words].clamp_min(-100.0)
        return 0.5 * difference.abs().sum(1) if self.config.target == "tv" else difference.square().mean(1)

    def state_dict(self) -> dict[str, Any]:
        """Round, and from the second round on the teacher: what a run that goes on needs beside the student."""
        return {"round": self.round, "teacher": self.teacher.state_dict() if self.round else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; strict. The teacher of the first round is the caller's, and stays as it is."""
        if state["round"]:
            self.start_round(state["round"], self.student)
            self.teacher.load_state_dict(state["teacher"])
