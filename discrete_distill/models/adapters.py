"""External models as denoisers: Hugging Face masked language models, LLaDA, Dream, the research networks of MDLM.

Nothing is imported from the libraries that they come from: a model is known by its configuration and its attributes.

Shape suffixes: B batch, L length, D width, V vocabulary.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from ..process import Denoiser, FeatureDenoiser, LogLinearSchedule, MaskingSchedule
from .attention_masks import additive_mask, real_tokens
from .heads import set_aside, why_not_apart
from .keywords import Keywords
from .lora import refuse_unmerged
from .token_dropout import finite_token_dropout, token_dropout_layers
from .wrappers import refuse_uniform_state, unwrap

Attention = Literal["padding", "full", "pairs", "none"]

POSITIONAL = "positional"
AUTO = "auto"
DENOISER_FILE = "denoiser.json"
WEIGHTS_FILE = "model.safetensors"

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
    """How an external model is called, and what its logits speak of.

    Args:
        ids: keyword of the token ids, or ``"positional"``.
        time: keyword of ``sigma(t)``, ``"positional"`` for the second argument, or None where it is not told.
        time_conditioning: whether it is told the true sigma; else zero, as MDLM was trained.
        attention: what becomes of ``attention_mask``. ``"padding"``: passed on, int64 ``[B, L]``. ``"full"``: an
            additive mask ``[B, 1, L, L]`` is passed in any case, so that a model of causal code attends both ways.
            ``"pairs"``: a bool mask ``[B, 1, L, L]`` and ``position_ids`` that count real tokens, as Dream takes them.
            ``"none"``: the model has no notion of padding, and a mask is refused.
        shifted: logits at position ``i`` speak of token ``i + 1``, as in Dream.
        head: dotted path of the module whose output is the logits, or None where it cannot be run alone.

    Raises:
        ValueError: if there is no such kind of attention, or the true sigma is to be told and nothing says where.
        TypeError: if a field is of another type.
    """

    ids: str = "input_ids"
    time: str | None = None
    time_conditioning: bool = False
    attention: Attention = "padding"
    shifted: bool = False
    head: str | None = None

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            raise ValueError(f"attention must be one of {', '.join(get_args(Attention))}; got {self.attention!r}")
        for name in ("time_conditioning", "shifted"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("ids", "time", "head"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "ids"):
                raise TypeError(f"{name} must be a name, got {value!r}")
        if self.time_conditioning and self.time is None:
            raise ValueError("time_conditioning=True tells the model its time: say by which keyword, time=")


def as_denoiser(
    model: Callable[..., Any],
    *,
    attention: Attention | None = None,
    shifted: bool | None = None,
    ids: str | None = None,
    time: str | None = None,
    time_conditioning: bool | None = None,
    head: str | None = AUTO,
    schedule: MaskingSchedule | None = None,
) -> Denoiser:
    """A `Denoiser` that calls an external model; a model that already is one is returned as it is.

    Known by themselves are Hugging Face masked language models (``...ForMaskedLM``), LLaDA (arXiv 2502.09992), Dream
    (arXiv 2508.15487), the hub class of MDLM (arXiv 2406.07524), and the transformer of the MDLM, DUO, SDTT and
    DiDi-Instruct repositories, which is called ``network(x, sigma)``. For any other, say how it is called; see
    `CallSignature`. Models inside DDP, ``torch.compile`` or peft's `PeftModel` are known as they are without.

    ``attention_mask`` and every other keyword that samplers and losses pass on reach the model; one that it does not
    take is refused. Where the head is known the denoiser has ``features`` and ``project``, and logits are computed only
    for the rows that are used; the model then runs with its head set aside, so that one model must not be called from
    two threads at a time. Three calls with four tokens test that this gives the model's own logits; where it does not,
    as with Gemma 2, which caps its logits, a warning says so and the head is run on all rows.

    Args:
        model: the network; dropout is off only if it is in evaluation mode.
        attention: see `CallSignature`.
        shifted: likewise.
        ids: likewise.
        time: likewise.
        time_conditioning: likewise.
        head: likewise, also relative to the model inside a wrapper; ``None`` forgoes ``features`` and ``project``.
        schedule: whose sigma a model that is told the time is given; MDLM's log-linear one by default.

    Raises:
        TypeError: if the model is of no known kind and nothing says how it is called, or it is a denoiser already and
            something does.
        ValueError: if it is causal and nothing says that it attends both ways, there is no head of that name, it is a
            uniform-state model, such as DUO, or what is said makes no `CallSignature`.
    """
    given: dict[str, Any] = {
        "attention": attention,
        "shifted": shifted,
        "ids": ids,
        "time": time,
        "time_conditioning": time_conditioning,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    inner, prefix = unwrap(model)
    if isinstance(inner, FeatureDenoiser | WrappedDenoiser):
        if changes or head != AUTO:
            raise TypeError(f"a {type(inner).__name__} is a denoiser already: leave out how it is called")
        return cast(Denoiser, model)
    known = recognise(inner)
    if known is None and not changes:
        raise _unknown(inner)
    convention = replace(known or CallSignature(), **changes)
    if head != AUTO:
        convention = replace(convention, head=head)
    if convention.head is None:
        return WrappedDenoiser(model, convention, schedule)
    if prefix and not convention.head.startswith(prefix):
        convention = replace(convention, head=prefix + convention.head)
    made = ForeignFeatureDenoiser(model, convention, schedule)
    if (why := made.why_not_apart()) is None:
        return made
    warnings.warn(f"a {type(inner).__name__} is run with its head on all rows: {why}", stacklevel=2)
    return WrappedDenoiser(model, replace(convention, head=None), schedule)


def recognise(model: Any) -> CallSignature | None:
    """How a model of a known kind is called, or None.

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
        )
    if type(model).__name__.endswith("ForMaskedLM"):
        return CallSignature(head=MASKED_LM_HEADS.get(str(kind)))
    if hasattr(model, "vocab_embed") and hasattr(getattr(model, "output_layer", None), "linear"):
        return CallSignature(
            ids=POSITIONAL,
            time=POSITIONAL,
            time_conditioning=_research_time_conditioning(config),
            attention="none",
            head="output_layer.linear",
        )
    return None


def _research_time_conditioning(config: Any) -> bool:
    """DUO's configuration has it under ``algo``, MDLM's at the top."""
    top = getattr(config, "time_conditioning", False)
    return bool(getattr(getattr(config, "algo", None), "time_conditioning", top))


def _unknown(model: Any) -> Exception:
    name = type(model).__name__
    if name.endswith("ForCausalLM"):
        return ValueError(
            f'a {name} reads from left to right: pass attention="full" if it was trained to read both ways, '
            "and shifted=True if its logits speak of the next token"
        )
    return TypeError(
        f"a {name} is no model that is known: say how it is called, such as as_denoiser(model, attention="
        '"padding") for model(input_ids=..., attention_mask=...).logits, or wrap it in a function (x_t, t) -> logits'
    )


class WrappedDenoiser(nn.Module):
    """``logits = model(ids, ...)`` under a `CallSignature`. Its parameters are the model's.

    Args:
        model: any callable that returns logits ``[B, L, V]``, or an output that holds them.
        convention: how it is called.
        schedule: whose sigma it is told, where it is.
    """

    def __init__(
        self, model: Callable[..., Any], convention: CallSignature, schedule: MaskingSchedule | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.convention = convention
        self.schedule = schedule if schedule is not None else LogLinearSchedule()
        self.keywords = Keywords.of(unwrap(model)[0])
        self._token_dropout = token_dropout_layers(model)

    @property
    def time_conditioned(self) -> bool:
        """Whether its answer depends on ``t``; if not, samplers share more of its answers."""
        return self.convention.time is not None and self.convention.time_conditioning

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """The model's own, as transformers' Trainer asks for it."""
        cast(Any, self.model).activation_checkpointing_enable(**options)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """The model's own, as transformers' Trainer asks for it."""
        cast(Any, self.model).gradient_checkpointing_enable(**options)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the model by its own ``save_pretrained``, or ``model.safetensors`` where it has none, and
        ``denoiser.json``, how it is called; `load_denoiser` reads models of transformers back.

        Raises:
            ValueError: if there are LoRA weights that were not merged, or it is told the time of a schedule of its own.
            TypeError: if it is a function.
        """
        refuse_unmerged(self)
        model, prefix = unwrap(self.model)
        if not isinstance(model, nn.Module):
            raise TypeError(f"a {type(model).__name__} has no weights to save")
        if self.time_conditioned and self.schedule != LogLinearSchedule():
            raise ValueError(f"{self.schedule} is not saved: save the model itself, and pass schedule= to as_denoiser")
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        if callable(getattr(model, "save_pretrained", None)):
            cast(Any, model).save_pretrained(directory)
        else:
            save_model(model, str(directory / WEIGHTS_FILE))
        head = None if self.convention.head is None else self.convention.head.removeprefix(prefix)
        called = asdict(replace(self.convention, head=head))
        (directory / DENOISER_FILE).write_text(json.dumps(called, indent=2), encoding="utf-8")

    @property
    def num_classes(self) -> int | None:
        """How many token ids the model reads; None where it does not tell."""
        try:
            table = getattr(self.model, "get_input_embeddings", lambda: None)()
        except NotImplementedError:
            return None
        return getattr(table, "num_embeddings", None)

    def forward(self, x_t: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **model_kwargs: Any) -> Tensor:
        """Raw logits ``[B, L, V]`` of ids ``[B, L]`` at times ``[B]``."""
        return self._aligned(self._call(x_t, t, attention_mask, model_kwargs))

    def _call(self, x_t: Tensor, t: Tensor, attention_mask: Tensor | None, model_kwargs: Mapping[str, Any]) -> Tensor:
        positional: list[Tensor] = []
        keywords = {**model_kwargs, **self._attention(x_t, attention_mask)}
        self.keywords.check(keywords, self.model)
        arguments = [(self.convention.ids, x_t)]
        if self.convention.time is not None:
            told = self.schedule.sigma(t) if self.convention.time_conditioning else torch.zeros_like(t)
            arguments.append((self.convention.time, told))
        for name, value in arguments:
            if name == POSITIONAL:
                positional.append(value)
            else:
                keywords[name] = value
        if not self._token_dropout:
            return _logits_of(self.model(*positional, **keywords))
        layers = [cast(nn.Module, self.model).get_submodule(name) for name in self._token_dropout]
        with finite_token_dropout(layers, x_t, keywords.get("attention_mask")):
            return _logits_of(self.model(*positional, **keywords))

    def _attention(self, x_t: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
        kind = self.convention.attention
        real = None if attention_mask is None else real_tokens(attention_mask, x_t.shape)
        if kind == "full":
            return {"attention_mask": additive_mask(x_t, real, self._dtype())}
        if real is None:
            return {}
        if kind == "none":
            raise ValueError(
                f"a {type(self.model).__name__} cannot leave padding out: give sequences of one length, "
                "without attention_mask"
            )
        if kind == "padding":
            return {"attention_mask": real.long()}
        pairs = real[:, None, :, None] & real[:, None, None, :]
        # Padding reads itself, so that no row of the softmax is empty; nobody else reads it.
        itself = torch.eye(x_t.shape[1], dtype=torch.bool, device=x_t.device)
        return {"attention_mask": pairs | itself, "position_ids": (real.cumsum(1) - 1).masked_fill(~real, 1)}

    def _dtype(self) -> torch.dtype:
        return next((value.dtype for value in self.parameters() if value.is_floating_point()), torch.float32)

    def _aligned(self, values_BLX: Tensor) -> Tensor:
        """In the place of the token that they speak of. The first token has no place before it and keeps its own."""
        if not self.convention.shifted:
            return values_BLX
        return torch.cat((values_BLX[:, :1], values_BLX[:, :-1]), dim=1)


class ForeignFeatureDenoiser(WrappedDenoiser):
    """One whose head can be run alone: ``features`` is the model with its head set aside, ``project`` the head.

    Raises:
        ValueError: if the model has no module of that name.
    """

    def __init__(
        self, model: Callable[..., Any], convention: CallSignature, schedule: MaskingSchedule | None = None
    ) -> None:
        super().__init__(model, convention, schedule)
        try:
            self._head()
        except AttributeError as error:
            raise ValueError(
                f"a {type(model).__name__} has no head at {convention.head!r}; name it by head=, or pass head=None"
            ) from error

    def _head(self) -> nn.Module:
        model: Any = self.model
        return model.get_submodule(self.convention.head)

    def features(self, x_t: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **model_kwargs: Any) -> Tensor:
        """What the head reads, ``[B, L, D]``."""
        with set_aside(self._head()):
            return self._aligned(self._call(x_t, t, attention_mask, model_kwargs))

    def project(self, features: Tensor) -> Tensor:
        """Vocabulary logits ``[..., V]`` of features ``[..., D]``."""
        return self._head()(features)

    def why_not_apart(self) -> str | None:
        """Why ``project(features(x_t, t))`` are not the logits, or None where they are."""
        inner, prefix = unwrap(self.model)
        assert self.convention.head is not None
        apart = ForeignFeatureDenoiser(
            inner, replace(self.convention, head=self.convention.head.removeprefix(prefix)), self.schedule
        )
        device = next((value.device for value in apart.parameters()), torch.device("cpu"))
        return why_not_apart(lambda x, t: apart._call(x, t.to(device), None, {}), apart._head(), device)


def _logits_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output["logits"]
    logits = getattr(output, "logits", None)
    return logits if logits is not None else output[0]
