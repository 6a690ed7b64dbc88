"""How an external model is called, where its parts are, and the kinds of models of which this is known.

Nothing is imported from the libraries that they come from: a model is known by its configuration and its attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from ..checks import check_count
from .wrappers import refuse_uniform_state

Attention = Literal["padding", "full", "pairs", "none"]

POSITIONAL = "positional"

# Where the head of a Hugging Face masked language model is: the module whose output is the logits.
MASKED_LM_HEADS = {
    "bert": "cls",
    "distilbert": "vocab_projector",
    "electra": "generator_lm_head",
    "esm": "lm_head",
    "modernbert": "decoder",
    "roberta": "lm_head",
}
HUB_MDLM = ("mdlm",)


@dataclass(kw_only=True, frozen=True)
class CallSignature:
    """Call signature, logit alignment and parts of an external model.

    Args:
        ids: keyword of the token ids, or ``"positional"``.
        time: keyword of ``sigma(t)``, ``"positional"`` for the second argument, or None where it is not passed.
        time_conditioning: whether it is passed the true sigma; else zero, as MDLM was trained.
        attention: what becomes of ``attention_mask``. ``"padding"``: passed on, int64 ``[B, L]``. ``"full"``: an
            additive mask ``[B, 1, L, L]`` is passed in any case, so that a model of causal code attends both ways.
            ``"pairs"``: a bool mask ``[B, 1, L, L]`` and ``position_ids`` that count real tokens, as Dream takes them.
            ``"none"``: the model has no notion of padding, and a mask is refused.
        shifted: logits at position ``i`` predict token ``i + 1``, as in Dream.
        block_length: positions in a block of a model that reads its own block and all earlier ones, as SDAR and LLaDA2
            do; goes with ``attention="full"``, whose mask is then by blocks. None: each token reads every other.
        head: dotted path of the module whose output is the logits, or None where it cannot be run alone.
        embedding: dotted path of the table of input embeddings; None takes the model's ``get_input_embeddings()``.
        blocks: dotted path of the `ModuleList` of blocks; None takes the longest of the model.

    Raises:
        ValueError: if there is no such kind of attention, the true sigma is to be passed and no keyword is given, or
            blocks are stated for another attention than "full".
        TypeError: if a field is of another type.

    Examples:
        >>> def model(tokens, sigma):
        ...     return torch.zeros(*tokens.shape, 9)
        >>> signature = CallSignature(ids="positional", time="positional", attention="none")
        >>> WrappedDenoiser(model, signature)(x_t, t).shape
        torch.Size([8, 16, 9])
    """

    ids: str = "input_ids"
    time: str | None = None
    time_conditioning: bool = False
    attention: Attention = "padding"
    shifted: bool = False
    block_length: int | None = None
    head: str | None = None
    embedding: str | None = None
    blocks: str | None = None

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            raise ValueError(f"attention must be one of {', '.join(get_args(Attention))}; got {self.attention!r}")
        for name in ("time_conditioning", "shifted"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("ids", "time", "head", "embedding", "blocks"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "ids"):
                raise TypeError(f"{name} must be a name, got {value!r}")
        if self.time_conditioning and self.time is None:
            raise ValueError("time_conditioning=True passes the model its time: give the keyword, time=")
        if self.block_length is not None:
            check_count("block_length", self.block_length)
            if self.attention != "full" or self.time_conditioning:
                raise ValueError(
                    f"block_length = {self.block_length} is a mask over pairs of tokens, of a model that is not passed "
                    'its time: pass attention="full", without time_conditioning'
                )


def recognise(model: Any) -> CallSignature | None:
    """Return the call signature of a model of a known kind, or None.

    Raises:
        ValueError: if it is a uniform-state model.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    algorithm = getattr(getattr(config, "algo", None), "name", None)
    refuse_uniform_state(
        f"a {type(model).__name__}", kind, type(model).__name__, getattr(config, "diffusion", None), algorithm
    )
    if kind == "llada":
        separate = not getattr(config, "weight_tying", False) and not getattr(config, "scale_logits", False)
        return CallSignature(head="model.transformer.ff_out" if separate else None)
    if kind == "Dream":
        return CallSignature(attention="pairs", shifted=True, head="lm_head")
    if kind in HUB_MDLM:
        return CallSignature(
            time="timesteps",
            time_conditioning=bool(getattr(config, "time_conditioning", False)),
            attention="none",
            head="backbone.output_layer.linear",
            embedding="backbone.vocab_embed",
        )
    if type(model).__name__.endswith("ForMaskedLM"):
        return CallSignature(head=MASKED_LM_HEADS.get(str(kind)) or output_head(model))
    if hasattr(model, "vocab_embed") and hasattr(getattr(model, "output_layer", None), "linear"):
        return CallSignature(
            ids=POSITIONAL,
            time=POSITIONAL,
            time_conditioning=_research_time_conditioning(config),
            attention="none",
            head="output_layer.linear",
            embedding="vocab_embed",
        )
    return None


def input_table(model: Any) -> nn.Module | None:
    """Return what ``get_input_embeddings`` of a model returns; None where it has no such method."""
    try:
        table = getattr(model, "get_input_embeddings", lambda: None)()
    except (AttributeError, NotImplementedError):  # of transformers' models that have none
        return None
    return table if isinstance(table, nn.Module) else None


def output_head(model: Any) -> str | None:
    """Return the dotted path of what ``get_output_embeddings`` returns; None where that is no module of its own."""
    try:
        head = getattr(model, "get_output_embeddings", lambda: None)()
    except (AttributeError, NotImplementedError):
        return None
    if not isinstance(head, nn.Module) or head is input_table(model):
        return None
    return next((name for name, module in model.named_modules() if module is head), None)


def _research_time_conditioning(config: Any) -> bool:
    """DUO's configuration has it under ``algo``, MDLM's at the top."""
    top = getattr(config, "time_conditioning", False)
    return bool(getattr(getattr(config, "algo", None), "time_conditioning", top))
