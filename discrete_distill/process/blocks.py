"""Likelihood bound of block diffusion: each block given the clean blocks before it.

Shape suffixes: B batch, L length, N blocks, K positions of a block, V vocabulary, R masked positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..checks import check_count, check_mask
from ..kernels import token_losses
from .conditions import call_network, check_conditions
from .denoiser import Denoiser, LogitsOfPart, check_ids, logits_in_parts
from .masking import MaskedDiffusion
from .outputs import NelboOutput
from .sequences import check_sequences
from .time import TimeDistribution


@runtime_checkable
class PairedDenoiser(Protocol):
    """A block-diffusion network that reads noisy blocks, each given the clean ones before it, in one pass.

    Attributes:
        block_length: positions in a block; None for a network that attends both ways, which has no such pass.

    Examples:
        >>> network = DiT(DiTConfig(**{**vars(shape), "block_length": 4}))
        >>> isinstance(network, PairedDenoiser), network.paired_features(x_t, data).shape
        (True, torch.Size([8, 16, 16]))
    """

    if TYPE_CHECKING:

        @property
        def block_length(self) -> int | None:
            """Positions in a block."""
            ...

    def paired_features(self, x_t: Tensor, x_0: Tensor, /, **model_kwargs: Any) -> Tensor:
        """What the head reads at the noisy tokens, ``[B, L, D]``."""
        ...

    def project(self, features: Tensor, /) -> Tensor:
        """Vocabulary logits ``[..., V]``."""
        ...


def reads_blocks(denoiser: Any) -> bool:
    """Whether it is a `PairedDenoiser` with attention by blocks.

    Examples:
        >>> reads_blocks(teacher), reads_blocks(DiT(DiTConfig(**{**vars(shape), "block_length": 4})))
        (False, True)
    """
    return isinstance(denoiser, PairedDenoiser) and denoiser.block_length is not None


def paired_logits(
    denoiser: PairedDenoiser,
    x_t: Tensor,
    x_0: Tensor,
    positions: Tensor,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
) -> LogitsOfPart:
    """Read noisy blocks in one pass, each given the clean blocks before it; logits a part of the positions at a time.

    Args:
        denoiser: with attention by blocks.
        x_t: int64 ``[B, L]``.
        x_0: int64 ``[B, L]``.
        positions: int64 ``[N]``, positions in the flattened ``[B * L]``.
        model_kwargs: passed to the denoiser by keyword.

    Returns:
        ``logits(part: slice) -> [n, V]``.

    Examples:
        >>> network = DiT(DiTConfig(**{**vars(shape), "block_length": 4})).eval()
        >>> positions = process.is_masked(x_t).flatten().nonzero()[:, 0]
        >>> paired_logits(network, x_t, data, positions)(slice(0, 2)).shape
        torch.Size([2, 9])
    """
    features_RD = call_network(denoiser, denoiser.paired_features, x_t, x_0, model_kwargs=model_kwargs or {}).flatten(
        0, 1
    )
    return lambda part: denoiser.project(features_RD[positions[part]])


def block_nelbo(
    process: MaskedDiffusion,
    denoiser: Denoiser,
    x_0: Tensor,
    *,
    block_length: int,
    by: Literal["time", "count"] = "time",
    time_distribution: TimeDistribution | None = None,
    generation_mask: Tensor | None = None,
    generator: Generator | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> NelboOutput:
    r"""Estimate the negative evidence lower bound of block diffusion (BD3-LM, arXiv 2503.09573).

    .. math:: -\log p(x) \le \sum_b \int \omega(t)\, E \sum_{i \in b, x_{t,i} = m} -\log p(x_i | x_t^b, x^{<b})\, dt

    Each block ``b`` has its own time. A `PairedDenoiser` reads all blocks in one pass over ``[x_t | x_0]``; any other
    denoiser is called once a block, on the clean blocks before it, the noisy block, and masks behind it. Blocks are
    counted from the first real token of each row. With blocks of one token by count, this is the exact negative
    log-likelihood of an autoregressive model.

    Args:
        process: mask and schedule.
        denoiser: any `Denoiser`.
        x_0: clean tokens, int64 ``[B, L]``.
        block_length: positions in a block; the last one may be shorter.
        by: see `MaskedDiffusion.draw_corruption`, which draws each block as a row of its own.
        time_distribution: of the times of the blocks, for ``by="time"``; likewise.
        generation_mask: bool ``[B, L]``; tokens that count (no prompt, no padding). All by default.
        generator: source of randomness.
        model_kwargs: passed to the denoiser by keyword, with the ``attention_mask`` of padded rows.

    Returns:
        `NelboOutput`.

    Raises:
        ValueError: if shapes do not fit, or the denoiser was trained with other blocks.
        TypeError: if an argument has a wrong type.

    Examples:
        >>> loss = block_nelbo(process, teacher, data, block_length=4, by="count", generator=generator).loss
        >>> loss.item()  # log(8)
        2.079...
    """
    check_count("block_length", block_length)
    check_sequences(x_0, generation_mask)
    check_conditions(model_kwargs, denoiser)
    check_ids(denoiser, process.mask_token_id)
    trained = getattr(denoiser, "block_length", None)
    if trained not in (None, block_length):
        raise ValueError(
            f"block_length is {block_length} and the denoiser reads blocks of {trained}; pass block_length={trained}"
        )
    given = dict(model_kwargs or {})
    real = given.get("attention_mask")
    if real is not None:
        check_mask("attention_mask", real, x_0.shape)
        # Rows begin with their first real token, so that blocks lie alike in all of them.
        places = real.to(torch.uint8).argmax(1, keepdim=True) + torch.arange(x_0.shape[1], device=x_0.device)
        inside, places = places < x_0.shape[1], places.clamp(max=x_0.shape[1] - 1)
        given["attention_mask"] = real = real.gather(1, places) & inside
        x_0 = x_0.gather(1, places)
        generation_mask = real if generation_mask is None else generation_mask.gather(1, places) & real
    batch, length = x_0.shape
    counted = torch.ones_like(x_0, dtype=torch.bool) if generation_mask is None else generation_mask
    padding = (0, -length % block_length)
    x_t, t, weight = process.draw_corruption(
        F.pad(x_0, padding).view(-1, block_length),
        by=by,
        generation_mask=F.pad(counted, padding).view(-1, block_length),
        time_distribution=time_distribution,
        generator=generator,
    )
    x_t, t_BN, weight_BN = x_t.view(batch, -1)[:, :length], t.view(batch, -1), weight.view(batch, -1)
    masked = process.is_masked(x_t, counted)
    block_L = torch.arange(length, device=x_0.device) // block_length
    nats = torch.zeros(batch, device=x_0.device, dtype=torch.promote_types(weight.dtype, torch.float32))
    for positions, logits_RV in _logits(process, denoiser, x_t, x_0, t_BN, masked, block_L, given):
        losses = token_losses(
            process.forbid(logits_RV), None, x_0.flatten()[positions], mask_token_id=process.mask_token_id
        )
        weights = weight_BN[positions // length, block_L[positions % length]]
        nats = nats.index_add(0, positions // length, (-losses.log_prob * weights).to(nats.dtype))
    num_tokens = counted.sum(1)
    return NelboOutput(nats.sum() / num_tokens.sum().clamp(min=1), nats, num_tokens)


def _logits(
    process: MaskedDiffusion,
    denoiser: Denoiser,
    x_t: Tensor,
    x_0: Tensor,
    t_BN: Tensor,
    masked: Tensor,
    block_L: Tensor,
    model_kwargs: Mapping[str, Any],
) -> list[tuple[Tensor, Tensor]]:
    """Flattened masked positions ``[R]`` with their logits ``[R, V]``, in one part or one for each block."""
    if reads_blocks(denoiser):
        positions = masked.flatten().nonzero().squeeze(1)
        paired: Any = denoiser
        return [(positions, paired_logits(paired, x_t, x_0, positions, model_kwargs=model_kwargs)(slice(None)))]
    parts = []
    for block in range(t_BN.shape[1]):
        x_block = torch.where(block_L < block, x_0, torch.where(block_L == block, x_t, process.mask_token_id))
        positions = (masked & (block_L == block)).flatten().nonzero().squeeze(1)
        t, largest = t_BN[:, block], process.mask_token_id
        logits_of = logits_in_parts(denoiser, x_block, t, positions, model_kwargs=model_kwargs, largest_id=largest)
        parts.append((positions, logits_of(slice(None))))
    return parts
