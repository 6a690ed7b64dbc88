"""Masked (absorbing) diffusion: corruption, substitution rules, reverse posterior and likelihood bound.

Shape suffixes: B batch, L length, V vocabulary (mask included), N chosen positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .. import draws
from ..checks import check_count, check_floats, check_generator, check_mask, check_same_shape
from .denoiser import Denoiser
from .forbidden import checked_forbidden_ids, without_ids
from .likelihood import nelbo
from .outputs import Corruption, NelboOutput
from .schedules import LogLinearSchedule, MaskingSchedule
from .sequences import check_level, check_sequences
from .time import StratifiedTime, TimeDistribution


@dataclass(frozen=True)
class MaskedDiffusion:
    """The absorbing process of MDLM (arXiv 2406.07524).

    Forward: each position independently ``P(x_t = x_0) = alpha(t)``, ``P(x_t = m) = 1 - alpha(t)``. Reverse
    from ``t`` to ``s < t``: a visible token stays; a masked one is revealed with probability
    ``(alpha_s - alpha_t) / (1 - alpha_t)`` and only then drawn from the denoiser. Time 0 is data and time 1
    is all mask *exactly*, whatever ``eps`` the schedule carries, so a sampler that ends at 0 leaves no mask
    and one that starts at 1 reveals as much as it should.

    All methods raise TypeError for token ids that are no integers and masks that hold no booleans, and ValueError for
    shapes that do not fit.

    Args:
        mask_token_id: id of the mask; never guessed.
        schedule: ``alpha(t)``.
        forbidden_token_ids: further ids that are never predicted, such as special tokens: samplers, student paths,
            log-probabilities and losses renormalise without them. Given tokens may be among them; a generated one has
            probability 0.

    Raises:
        TypeError: if an id is not an integer.
        ValueError: if an id is negative, or the mask is among the forbidden ones.

    Examples:
        >>> process = MaskedDiffusion(mask_token_id=8, schedule=LinearSchedule())
        >>> process.corrupt(torch.tensor([[1, 2, 3, 4]]), torch.tensor([1.0])).tolist()  # t = 1 is all mask.
        [[8, 8, 8, 8]]
        >>> process.unmask_probability(torch.tensor(0.8), torch.tensor(0.6))  # (0.4 - 0.2) / (1 - 0.2)
        tensor(0.2500)
        >>> process.nelbo(teacher, data, by="count", generator=generator).loss.item()  # log(8): all tokens alike.
        2.079...
    """

    mask_token_id: int
    schedule: MaskingSchedule = field(default_factory=LogLinearSchedule)
    forbidden_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_count("mask_token_id", self.mask_token_id, minimum=0)
        forbidden = checked_forbidden_ids(self.forbidden_token_ids, self.mask_token_id)
        object.__setattr__(self, "forbidden_token_ids", forbidden)

    def forbid(self, logits: Tensor) -> Tensor:
        """Copy logits ``[..., V]`` with -inf at the forbidden ids; the mask is left as it is. See `without_ids`."""
        return without_ids(logits, tuple(self.forbidden_token_ids))

    def is_masked(self, x_t: Tensor, generation_mask: Tensor | None = None) -> Tensor:
        """Bool, of the shape of ``x_t``; positions that are not ``generation_mask`` do not count.

        Raises:
            TypeError: if ``generation_mask`` does not hold booleans.
            ValueError: if it has another shape.
        """
        check_mask("generation_mask", generation_mask, x_t.shape)
        masked = x_t == self.mask_token_id
        return masked if generation_mask is None else masked & generation_mask

    def judged_positions(self, x_t: Tensor, generation_mask: Tensor | None = None) -> Tensor:
        """Where a discriminator of corrupted states is trained and read, bool ``[B, L]``: the masked positions of each
        row; in a row without a mask, whose state belongs to the divergence as well, all ``generation_mask`` ones."""
        masked = self.is_masked(x_t, generation_mask)
        visible = torch.ones_like(masked) if generation_mask is None else generation_mask
        return torch.where(masked.any(1, keepdim=True), masked, visible)

    def visible_probability(self, t: Tensor) -> Tensor:
        """``alpha(t)`` with the ends made exact: 1 at ``t = 0`` and 0 at ``t = 1``."""
        alpha = self.schedule.alpha(t)
        alpha = torch.where(t <= 0.0, torch.ones_like(alpha), alpha)
        return torch.where(t >= 1.0, torch.zeros_like(alpha), alpha)

    def unmask_probability(self, t: Tensor, s: Tensor) -> Tensor:
        """``(alpha_s - alpha_t) / (1 - alpha_t)``, elementwise; 1 where ``s = 0``.

        Raises:
            TypeError: if times are no floating-point numbers.
            ValueError: if ``t`` and ``s`` differ in shape.
        """
        check_same_shape(t=t, s=s)
        alpha_t, alpha_s = self.visible_probability(t), self.visible_probability(s)
        ratio = ((alpha_s - alpha_t) / (1.0 - alpha_t)).clamp(0.0, 1.0)
        # Near the data 1 - alpha_t may round to 0, and the ratio to 0 / 0.
        return torch.where(s <= 0.0, torch.ones_like(ratio), ratio)

    def corrupt(
        self, x_0: Tensor, t: Tensor, *, generation_mask: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Draw ``x_t`` from ``x_0``.

        Args:
            x_0: int64 ``[B, L]``.
            t: ``[B]`` in ``[0, 1]``; values are checked on a CPU, where that costs no wait for the device.
            generation_mask: bool ``[B, L]``; positions that may be masked (all, by default).
            generator: source of randomness, on the device of ``x_0``.

        Returns:
            int64 ``[B, L]``.

        Raises:
            TypeError: if ``t`` does not hold floating-point numbers.
            ValueError: if a time is outside ``[0, 1]`` or NaN.
        """
        check_sequences(x_0, generation_mask)
        check_level("t", t, x_0, integers=False)
        return self._hide(x_0, self.visible_probability(t), generation_mask, generator)

    def _hide(
        self, x_0: Tensor, visible_B: Tensor, generation_mask: Tensor | None, generator: Generator | None
    ) -> Tensor:
        """Leave every generated position of row ``b`` visible with probability ``visible_B[b]``, by its own draw."""
        check_generator(generator)
        uniform = draws.rand(x_0.shape, device=x_0.device, generator=generator)
        hidden = uniform >= visible_B[:, None]
        if generation_mask is not None:
            hidden = hidden & generation_mask
        return torch.where(hidden, self.mask_token_id, x_0)

    def corrupt_by_count(
        self,
        x_0: Tensor,
        count: Tensor,
        *,
        generation_mask: Tensor | None = None,
        generator: Generator | None = None,
        group_size: int = 1,
    ) -> Tensor:
        """Mask exactly ``count`` generated positions of each row, chosen uniformly.

        Args:
            x_0: int64 ``[B, L]``.
            count: int64 ``[B]``, at least 0 and at most the number of generated positions of the row; values are
                checked on a CPU.
            generation_mask: bool ``[B, L]``; all, by default.
            generator: source of randomness.
            group_size: consecutive rows that share the order in which positions are masked; where the same ones are
                generated, rows of equal count are masked at the same positions.

        Raises:
            TypeError: if ``count`` does not hold integers.
            ValueError: if a count is out of range.
        """
        check_sequences(x_0, generation_mask)
        check_level("count", count, x_0, integers=True, maximum=self.num_generated(x_0, generation_mask))
        hidden = _ranks(x_0, generation_mask, generator, group_size) < count[:, None]
        if generation_mask is not None:
            hidden = hidden & generation_mask
        return torch.where(hidden, self.mask_token_id, x_0)

    def draw_parts(
        self,
        x_0: Tensor,
        num_parts: int,
        *,
        generation_mask: Tensor | None = None,
        generator: Generator | None = None,
        group_size: int = 1,
    ) -> Tensor:
        """Deal the generated positions of each row out at random to parts of equal size (up to one).

        Args:
            x_0: int64 ``[B, L]``.
            num_parts: at least 1.
            generation_mask: bool ``[B, L]``; all, by default.
            generator: source of randomness.
            group_size: consecutive rows that are dealt in one order.

        Returns:
            int64 ``[B, L]``: the part of each position, in ``0 .. num_parts - 1``; -1 where it may not move.

        Raises:
            ValueError: if ``num_parts`` is below 1.
        """
        check_sequences(x_0, generation_mask)
        check_count("num_parts", num_parts)
        part = _ranks(x_0, generation_mask, generator, group_size) % num_parts
        return part if generation_mask is None else part.masked_fill(~generation_mask, -1)

    def draw_corruption(
        self,
        x_0: Tensor,
        *,
        by: Literal["time", "count"] = "time",
        generation_mask: Tensor | None = None,
        time_distribution: TimeDistribution | None = None,
        level: Tensor | None = None,
        generator: Generator | None = None,
        group_size: int = 1,
    ) -> Corruption:
        """One corruption of each row, at levels spread evenly over the batch.

        ``by="time"``: each position masked by its own draw. By default its probability ``u`` is uniform on ``(0, 1)``
        (stratified over the batch) and the weight ``1 / u``: the NELBO does not depend on the schedule, and so stands
        for all of it, the ends that the schedule leaves out included. With a ``time_distribution``, ``t ~ pi`` and the
        weight is ``omega(t) / pi(t)`` with ``omega`` of the ELBO, which leaves out what the distribution and the
        schedule leave out. ``by="count"``: exactly ``k`` of ``n`` positions masked, ``k`` stratified over ``1..n``,
        weight ``n / k``; the same expectation without the heavy tail of ``1 / u``.

        Args:
            x_0: int64 ``[B, L]``.
            by: see above.
            generation_mask: bool ``[B, L]``; positions that may be masked (all, by default).
            time_distribution: see above.
            level: by count: ``[B]`` in ``[0, 1)``, from which counts are computed; stratified by default.
            generator: source of randomness.
            group_size: by count: consecutive rows that are masked in one order; see `corrupt_by_count`.

        Raises:
            ValueError: if ``by`` is neither "time" nor "count".
        """
        if by not in ("time", "count"):
            raise ValueError(f'corruption is drawn by "time" or by "count", got {by!r}')
        check_sequences(x_0, generation_mask)
        batch = x_0.shape[0]
        if by == "time" and time_distribution is not None:
            t, density = time_distribution.sample(batch, device=x_0.device, generator=generator)
            x_t = self.corrupt(x_0, t, generation_mask=generation_mask, generator=generator)
            return Corruption(x_t, t, self.schedule.elbo_weight(t) / density)
        if level is not None:
            check_level("level", level, x_0, integers=False)
        else:
            level = StratifiedTime().sample(batch, device=x_0.device, generator=generator).t
        if by == "time":
            x_t = self._hide(x_0, 1.0 - level, generation_mask, generator)
            t = self.schedule.inverse(1.0 - level).clamp(0.0, 1.0)
            return Corruption(x_t, t, 1.0 / level.clamp(min=torch.finfo(level.dtype).tiny))
        size = self.num_generated(x_0, generation_mask)
        count = ((level * size).long() + 1).minimum(size)
        x_t = self.corrupt_by_count(
            x_0, count, generation_mask=generation_mask, generator=generator, group_size=group_size
        )
        return Corruption(x_t, self.time_of_count(count, size), size / count.clamp(min=1))

    def time_of_count(self, count: Tensor, size: Tensor) -> Tensor:
        """The time at which ``count`` of ``size`` masked positions is expected; fp32, in ``[0, 1]``.

        Raises:
            ValueError: if ``count`` and ``size`` differ in shape.
        """
        if count.shape != size.shape:
            raise ValueError(f"count has shape {list(count.shape)}, size {list(size.shape)}; they must agree")
        fraction = count.float() / size.float().clamp(min=1.0)
        return self.schedule.inverse(1.0 - fraction).clamp(0.0, 1.0)

    @staticmethod
    def num_generated(x_0: Tensor, generation_mask: Tensor | None) -> Tensor:
        """Positions of each row that may be masked, int64 ``[B]``."""
        check_sequences(x_0, generation_mask)
        if generation_mask is None:
            return torch.full((x_0.shape[0],), x_0.shape[1], device=x_0.device, dtype=torch.long)
        return generation_mask.sum(dim=1)

    def masked_log_probs(self, logits: Tensor) -> Tensor:
        """Log-probabilities at masked positions ``[..., V]``: fp32 log-softmax, ``-inf`` at the mask and forbidden ids.

        Raises:
            TypeError: if the logits are no floating-point numbers.
            ValueError: if the mask is not in their vocabulary.
        """
        check_floats("logits", logits)
        if logits.dim() < 1:
            raise ValueError("logits must be [..., V], got a single number")
        vocab_size = logits.shape[-1]
        if self.mask_token_id >= vocab_size:
            raise ValueError(
                f"mask_token_id {self.mask_token_id} is outside the {vocab_size} classes of the logits; "
                "the network's vocabulary must include the mask"
            )
        logits = self.forbid(logits).to(torch.promote_types(logits.dtype, torch.float32))
        mask_column = torch.arange(vocab_size, device=logits.device) == self.mask_token_id
        return F.log_softmax(logits.masked_fill(mask_column, float("-inf")), dim=-1)

    def log_probs(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """The SUBS parameterisation of MDLM: the mask is never predicted, visible tokens are carried over.

        Args:
            logits: raw, ``[B, L, V]``; not modified.
            x_t: int64 ``[B, L]``.

        Returns:
            ``log p(x_i | x_t)``, fp32 (fp64 for fp64 logits) ``[B, L, V]``.

        Raises:
            ValueError: if the mask is not in the vocabulary of the logits.
        """
        log_probs = self.masked_log_probs(logits)
        carried = torch.full_like(log_probs, float("-inf")).scatter(-1, x_t[..., None], 0.0)
        return torch.where(self.is_masked(x_t)[..., None], log_probs, carried)

    def posterior(self, logits: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Distribution of each position of ``x_s`` given ``x_t``, under the denoiser: probabilities ``[B, L, V]``.

        ``P(x_s = m) = (1 - alpha_s) / (1 - alpha_t)`` and
        ``P(x_s = v) = (alpha_s - alpha_t) / (1 - alpha_t) p(v)`` at masked positions; visible ones
        stay. Samplers do not draw from this joint (they draw unmasking and token separately).
        """
        probs = self.log_probs(logits, x_t).exp()
        reveal = self.unmask_probability(t, s)[:, None, None].to(probs.dtype)
        stay = F.one_hot(x_t, probs.shape[-1]).to(probs.dtype)
        revealed = reveal * probs + (1.0 - reveal) * stay
        return torch.where(self.is_masked(x_t)[..., None], revealed, stay)

    def nelbo(
        self,
        denoiser: Denoiser,
        x_0: Tensor,
        *,
        block_length: int | None = None,
        by: Literal["time", "count"] = "time",
        time_distribution: TimeDistribution | None = None,
        generation_mask: Tensor | None = None,
        generator: Generator | None = None,
        s: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> NelboOutput:
        r"""One estimate of ``-log p(x) <= integral of omega(t) E[sum_masked -log p(x_i | x_t)] dt``.

        The Rao-Blackwellised form of MDLM (arXiv 2406.07524, eq. 10), with low-discrepancy times (or counts)
        over the batch. Vocabulary logits are computed at masked positions only. Of a denoiser that reads by blocks it
        is the bound of block diffusion, in which each block has a time of its own; see `likelihood.nelbo`.

        Args:
            denoiser: any `Denoiser`.
            x_0: clean tokens, int64 ``[B, L]``.
            block_length: positions in a block, each given the clean ones before it; by default those of the denoiser,
                the whole sequence where it attends both ways.
            by: see `draw_corruption`, which draws each block as a row of its own.
            time_distribution: distribution of ``t`` for ``by="time"``; see `draw_corruption` for the default, which is
                exact.
            generation_mask: bool ``[B, L]``; tokens that count (no prompt, no padding, even if padded with masks).
                All by default; in blocks, all real ones.
            generator: source of randomness.
            s: ``[B]``, passed to a denoiser that ``accepts_step``: a label of the samples, as there are no steps here.
            model_kwargs: passed to the denoiser by keyword, with the ``attention_mask`` of padded rows.
            batch_size: sequences that are read at once, all by default; the draws do not depend on it.

        Raises:
            ValueError: if shapes do not fit, or the denoiser was trained with other blocks.
        """
        return nelbo(
            self,
            denoiser,
            x_0,
            block_length=block_length,
            by=by,
            time_distribution=time_distribution,
            generation_mask=generation_mask,
            generator=generator,
            s=s,
            model_kwargs=model_kwargs,
            batch_size=batch_size,
        )


def _ranks(x_0: Tensor, generation_mask: Tensor | None, generator: Generator | None, group_size: int) -> Tensor:
    """Place of every position in a random order of its row, int64 ``[B, L]``: generated positions first; groups of
    consecutive rows share their random numbers."""
    check_generator(generator)
    if check_count("group_size", group_size) and x_0.shape[0] % group_size:
        raise ValueError(f"group_size {group_size} does not divide the batch of {x_0.shape[0]} sequences")
    draw = draws.rand((x_0.shape[0] // group_size, x_0.shape[1]), device=x_0.device, generator=generator)
    order = draw.repeat_interleave(group_size, dim=0)
    if generation_mask is not None:
        order = order.masked_fill(~generation_mask, 2.0)
    return order.argsort(dim=1).argsort(dim=1)
