"""The reward of `RolloutMMD`: features of a frozen network at the student's tokens, against those of data.

It is a log-ratio by interface and the gradient of a squared MMD by meaning (see `token_witness`): paths, groups,
leave-one-out baselines and credit are those of the other methods, and there is no auxiliary network to train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...checks import check_count
from ...models import HiddenStatesDenoiser
from ...models.capabilities import require
from ...process import evaluation_mode
from ..divergence import LogRatio, token_witness
from ..divergence.mmd import check_bandwidth
from ..rollout import Rollout
from .output import LogRatioOutput


class FeatureNetwork(Protocol):
    """``network(x_0, t) -> features [B, L, D]`` of clean tokens ``x_0`` (``t`` is 0); frozen. With ``model_kwargs``,
    the keyword arguments of the networks, where a rollout has some."""

    def __call__(self, x_0: Tensor, t: Tensor, /, *, model_kwargs: Mapping[str, Any] | None = None) -> Tensor: ...


@dataclass(frozen=True)
class FrozenFeatures:
    """Hidden states of a denoiser after one of its blocks. The network is read in evaluation mode.

    A masked denoiser is trained to predict at masked positions alone, so at clean tokens its last block is
    uninformative; a block in the middle has read token and context.

    Args:
        network: a `HiddenStatesDenoiser`, such as `DiT` or a transformer behind `as_denoiser`.
        block: index of the block; the one in the middle if None.
        normalize: scale them to unit length, so that directions are compared, not norms.

    Raises:
        TypeError: if the network does not offer its hidden states.
        ValueError: if it has no such block.

    Examples:
        >>> features = FrozenFeatures(as_denoiser(bert), block=0)
        >>> features(data, 0.0 * t).norm(dim=-1).mean().item()  # [8, 16, 16] of unit length
        1.0...
    """

    network: nn.Module
    block: int | None = None
    normalize: bool = True

    def __post_init__(self) -> None:
        count = len(self._readable().blocks)
        if not 0 <= self._index(count) < count:
            raise ValueError(
                f"{type(self.network).__name__} has {count} blocks, none of them is block {self.block}; "
                "pass features=, a function from clean tokens to [B, L, D]"
            )

    def _readable(self) -> HiddenStatesDenoiser:
        return require(self.network, HiddenStatesDenoiser, needed_by="a comparison of features")

    def _index(self, count: int) -> int:
        return (count - 1) // 2 if self.block is None else self.block

    @torch.no_grad()
    def __call__(self, x_0: Tensor, t: Tensor, /, *, model_kwargs: Mapping[str, Any] | None = None) -> Tensor:
        network = self._readable()
        with evaluation_mode(network):
            h_BLD = network.hidden_states(x_0, t, self._index(len(network.blocks)), **(model_kwargs or {}))
        h_BLD = h_BLD.float()
        return nn.functional.normalize(h_BLD, dim=-1) if self.normalize else h_BLD


@dataclass(frozen=True)
class MMDLogRatio:
    """The witness function of an MMD in the place of a log-ratio: ``2 w(f_i) / n`` at each token of a student sequence.

    ``n`` is the number of its tokens; the sum is the sequence's share of ``grad MMD^2``. It reads clean samples: there
    is no time in it.

    Args:
        features: frozen.
        group_size: rows of a group are not compared with each other; the leave-one-out baseline does that.
        bandwidth: of the kernel; the median distance within the reference if None.

    Raises:
        TypeError: if the group size is no integer, or the bandwidth no number.
        ValueError: if the group size or the bandwidth is not positive.

    Examples:
        >>> log_ratio = MMDLogRatio(FrozenFeatures(as_denoiser(bert)), group_size=4)
        >>> samples = torch.randint(8, (8, 16), generator=generator)
        >>> log_ratio(samples, 0.0 * t, x_0=samples, reference=data).per_position.shape
        torch.Size([8, 16])
    """

    features: FeatureNetwork
    group_size: int
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        check_count("group_size", self.group_size)
        if self.bandwidth is not None:
            check_bandwidth(self.bandwidth)

    @torch.no_grad()
    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        x_0: Tensor | None = None,
        generation_mask: Tensor | None = None,
        s: Tensor | None = None,
        reference: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> LogRatio:
        """Raises ValueError without the clean tokens ``x_0`` and ``reference``, those of data, int64 ``[M, L]``; and
        where positions are given, but not as many reference sequences as samples."""
        if x_0 is None or reference is None:
            raise ValueError("the MMD compares samples with data; pass reference=")
        if len(reference) != len(x_0) and generation_mask is not None and not bool(generation_mask.all()):
            raise ValueError(
                f"{len(reference)} reference sequences for {len(x_0)} samples with given positions: give one for each "
                "sample, with the same positions given"
            )
        clean = torch.zeros(len(x_0), device=x_0.device)
        clean_reference = torch.zeros(len(reference), device=x_0.device)
        given: dict[str, Any] = {"model_kwargs": model_kwargs} if model_kwargs else {}
        with evaluation_mode(self.features):
            witness_BL = token_witness(
                self.features(x_0, clean, **given),
                self.features(reference, clean_reference, **(given if len(reference) == len(x_0) else {})),
                group_size=self.group_size,
                loss_mask_BL=generation_mask,
                bandwidth=self.bandwidth,
            )
        loss_mask = (
            witness_BL.new_full((len(x_0),), x_0.shape[1])
            if generation_mask is None
            else generation_mask.sum(1).clamp(min=1)
        )
        per_position = 2.0 * witness_BL / loss_mask[:, None]
        return LogRatio(per_position, per_position.sum(1))

    def log_ratio_output(self, rollout: Rollout, reference: Tensor) -> LogRatioOutput:
        """Of a rollout's samples, for `RolloutMMD.student_loss`."""
        x_0, loss_mask = rollout.judged()
        t = torch.zeros(len(x_0), device=x_0.device)
        log_ratio = self(
            x_0,
            t,
            x_0=x_0,
            generation_mask=loss_mask,
            reference=reference,
            model_kwargs=rollout.denoiser_kwargs(),
        )
        return LogRatioOutput(t, log_ratio)
