"""External models as denoisers: Hugging Face masked language models, LLaDA, Dream, the research networks of MDLM."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from torch import nn

from ..process import Denoiser, FeatureDenoiser, MaskingSchedule
from ..process.conditions import name_of
from .call_signature import Attention, CallSignature, output_head, recognise
from .capabilities import BlockDenoiser, forgo
from .verification import Verification
from .wrapped_denoiser import WITH_A_CACHE, WrappedDenoiser
from .wrappers import unwrap

AUTO = "auto"


def as_denoiser(
    model: Callable[..., Any],
    *,
    attention: Attention | None = None,
    shifted: bool | None = None,
    block_length: int | None = None,
    ids: str | None = None,
    time: str | None = None,
    time_conditioning: bool | None = None,
    head: str | None = AUTO,
    embedding: str | None = None,
    blocks: str | None = None,
    schedule: MaskingSchedule | None = None,
    verify: bool = True,
) -> Denoiser:
    """Return a `Denoiser` that calls an external model, with all capabilities that the model can offer.

    A denoiser is returned as it is: a network of this library, an earlier result, a function ``(x_t, t, ...)``, a
    module whose ``forward`` has a second parameter ``t``.

    Known by themselves are Hugging Face masked language models (``...ForMaskedLM``), LLaDA (arXiv 2502.09992), Dream
    (arXiv 2508.15487), the hub class of MDLM (arXiv 2406.07524), and the transformer of the MDLM, DUO, SDTT and
    DiDi-Instruct repositories, which is called ``network(x, sigma)``. For any other, say how it is called; see
    `CallSignature`. Models inside DDP, ``torch.compile`` or peft's `PeftModel` are known as they are without.

    ``attention_mask`` and every other keyword that samplers and losses pass on reach the model; one that it does not
    take is refused. `WrappedDenoiser` has the capabilities and what they rest on.

    Args:
        model: the network; dropout is off only if it is in evaluation mode.
        attention: see `CallSignature`.
        shifted: likewise.
        block_length: likewise.
        ids: likewise.
        time: likewise.
        time_conditioning: likewise.
        head: likewise; by default that of a known kind, or what ``get_output_embeddings()`` returns. ``None`` forgoes
            ``features`` and ``project``.
        embedding: likewise.
        blocks: likewise.
        schedule: whose sigma a model that is passed the time is given; MDLM's log-linear one by default.
        verify: call the model on one sequence of four tokens (of a block and two), sixteen times at most, and give up
            with a warning what does not hold: ``project(features(x_t))`` are the logits (not in Gemma 2, which caps
            them), calls with ``inputs_embeds=embed(x_t)`` equal those with ``x_t``, the content of padding does not
            matter (else ``attention_mask`` is refused), and tokens read against kept keys and values have the logits of
            the whole sequence. A model that reads from left to right is warned of.

    Returns:
        A `WrappedDenoiser`, or the model itself.

    Raises:
        TypeError: if the model is of no known kind and no `CallSignature` is given, or it is a denoiser already and
            something does.
        ValueError: if it is causal and not stated to attend both ways, there is no module of that name, it is
            a uniform-state model, such as DUO, the arguments make no `CallSignature`, or it is stated to read by blocks
            and does not.

    Examples:
        >>> denoiser = as_denoiser(bert)
        >>> AncestralSampler(process, num_steps=4)(denoiser, shape=(2, 16), generator=generator).nfe
        4
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> llama = LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes))
        >>> as_denoiser(llama, attention="full", shifted=True).call_signature.shifted
        True
        >>> as_denoiser(llama, attention="full", shifted=False, block_length=4).block_length
        4
    """
    given: dict[str, Any] = {
        "attention": attention,
        "shifted": shifted,
        "block_length": block_length,
        "ids": ids,
        "time": time,
        "time_conditioning": time_conditioning,
        "embedding": embedding,
        "blocks": blocks,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    inner = unwrap(model)[0]
    if isinstance(inner, FeatureDenoiser | WrappedDenoiser):
        if changes or head != AUTO:
            raise TypeError(f"a {type(inner).__name__} is a denoiser already: leave out how it is called")
        return cast(Denoiser, model)
    signature = recognise(inner)
    if signature is None:
        if not changes and head == AUTO:
            return _own_denoiser(model, inner)
        signature = CallSignature(head=output_head(inner))
    signature = replace(signature, **changes)
    if head != AUTO:
        signature = replace(signature, head=head)
    made = WrappedDenoiser(model, signature, schedule)
    return _verified(made) if verify and isinstance(inner, nn.Module) else made


def _own_denoiser(model: Callable[..., Any], inner: Any) -> Denoiser:
    """The model, if its signature is that of a denoiser."""
    name = name_of(inner)
    if name.endswith("ForCausalLM"):
        raise ValueError(
            f'a {name} reads from left to right: pass attention="full" if it was trained to read both ways, '
            "and shifted=True if its logits predict the next token"
        )
    is_module = isinstance(inner, nn.Module)
    try:
        parameters = inspect.signature(inner.forward if is_module else inner).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    placed = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    needed = [each for each in placed if each.default is each.empty]
    takes_two = (len(placed) >= 2 and len(needed) <= 2) or any(each.kind is each.VAR_POSITIONAL for each in parameters)
    if takes_two and (not is_module or (len(placed) >= 2 and placed[1].name == "t")):
        return cast(Denoiser, model)
    raise TypeError(
        f"a {name} is no model that is known: say how it is called, such as as_denoiser(model, attention="
        '"padding") for model(input_ids=..., attention_mask=...).logits, or give a function (x_t, t) -> logits'
    )


def _verified(made: WrappedDenoiser) -> WrappedDenoiser:
    """The denoiser without what its model does not hold to."""
    name, verification = type(unwrap(made.model)[0]).__name__, Verification(made)
    signature = made.call_signature
    if signature.head is not None and (why := verification.why_not_apart()) is not None:
        _warn(f"a {name} is run with its head on all positions: {why}")
        signature = replace(signature, head=None)
        verification = Verification(WrappedDenoiser(made.model, signature, made.schedule))
    if signature.block_length is not None and (why := verification.why_not_by_blocks()) is not None:
        raise ValueError(
            f"a {name} does not read by blocks of {signature.block_length}, as the mask [B, 1, L, L] and position_ids "
            f"of its call say: {why}; load it with an attention that obeys them, such as attn_implementation="
            '"sdpa", or leave block_length out'
        )
    if signature.attention != "none" and (why := verification.why_not_padded()) is not None:
        _warn(f"a {name} is given no attention_mask, and one is refused: {why}")
        signature = replace(signature, attention="none")
    if signature.block_length is None and (why := verification.why_not_both_ways()) is not None:
        _warn(
            f'a {name} fills in masks from what stands before them alone: {why}; pass attention="full" if it was '
            "trained to read both ways"
        )
    if signature != made.call_signature:
        made = WrappedDenoiser(made.model, signature, made.schedule)
    if made.input_embeddings is not None and (why := verification.why_not_embedded()) is not None:
        _warn(f"a {name} is no EmbeddingDenoiser: {why}")
        forgo(made, "embed", "embedding_weight")
    if isinstance(made, BlockDenoiser) and (why := verification.why_not_cached()) is not None:
        _warn(f"a {name} is no BlockDenoiser, and is sampled without a cache: {why}")
        forgo(made, *WITH_A_CACHE)
    return made


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
