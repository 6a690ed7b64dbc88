"""A denoiser that calls an external model under a `CallSignature`.

Shape suffixes: B batch, L length, D width, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn

from ..distributed.parallel import blocks_of
from ..process import LogLinearSchedule, MaskingSchedule
from ..process.sequences import real_tokens
from .attention_masks import additive, places_before, readable, row_positions
from .block_cache import BlockCache
from .block_reading import BlockReading
from .call_signature import POSITIONAL, CallSignature, input_table
from .capabilities import forgo
from .keywords import Keywords
from .listed_cache import ListedCache
from .longest_sequence import longest_sequence, refuse_longer
from .lora import refuse_unmerged
from .replaced import output_kept, replaced, set_aside
from .token_dropout import finite_token_dropout, token_dropout_layers
from .wrappers import unwrap

DENOISER_FILE = "denoiser.json"
WEIGHTS_FILE = "model.safetensors"
WITH_A_CACHE = ("prefill", "block_features", "denoise", "commit")


class WrappedDenoiser(BlockReading, nn.Module):
    """``logits = model(ids, ...)`` under a `CallSignature`. Its parameters are the model's.

    It is a `FeatureDenoiser` where the head is known, an `EmbeddingDenoiser` where the table of input embeddings is,
    a `HiddenStatesDenoiser` where the list of blocks is, and a `BlockDenoiser` where the head is known and the model
    takes ``past_key_values``: with attention "full" or "pairs", and ``position_ids``, as models of transformers and
    Dream do; else with ``replace_position``, as LLaDA and Dream in Fast-dLLM's code do. For these the model runs with
    its head, its table or both set aside for the call, so that it needs no support for ``inputs_embeds``; one model
    must not be called from two threads at a time.

    Args:
        model: any callable that returns logits ``[B, L, V]``, or an output that holds them.
        call_signature: how it is called. Paths are those inside DDP, ``torch.compile`` and peft.
        schedule: whose sigma is passed, if any; MDLM's log-linear one by default.

    Raises:
        ValueError: if the model has no module at one of the paths.

    Examples:
        >>> denoiser = WrappedDenoiser(bert, CallSignature(head="cls"))
        >>> torch.equal(denoiser(x_t, t), bert(input_ids=x_t).logits)
        True
        >>> denoiser.num_classes, denoiser.features(x_t, t).shape
        (9, torch.Size([8, 16, 16]))
    """

    def __init__(
        self, model: Callable[..., Any], call_signature: CallSignature, schedule: MaskingSchedule | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.call_signature = call_signature
        self.schedule = schedule if schedule is not None else LogLinearSchedule()
        self.keywords = Keywords.of(unwrap(model)[0])
        self._token_dropout = token_dropout_layers(model)
        self._longest = longest_sequence(unwrap(model)[0])
        absent: list[str] = []
        if self.vocabulary_head is None:
            absent += ["features", "project"]
        if self.input_embeddings is None:
            absent += ["embed", "embedding_weight"]
        if not self.blocks:
            absent += ["hidden_states"]
        names, attention = set(self.keywords.names), call_signature.attention
        listed = attention != "full" and {"past_key_values", "replace_position"} <= names
        held = attention in ("full", "pairs") and {"past_key_values", "position_ids"} <= names
        self.kind_of_cache = ListedCache if listed else BlockCache
        if self.vocabulary_head is None or not (listed or held):
            absent += [*WITH_A_CACHE, "paired_features"]
        forgo(self, *absent)

    def _part(self, name: str) -> nn.Module | None:
        path = getattr(self.call_signature, name)
        if path is None:
            return None
        model, prefix = unwrap(self.model)
        try:
            found: nn.Module = model.get_submodule(path.removeprefix(prefix))
        except AttributeError as error:
            raise ValueError(
                f"a {type(model).__name__} has no {name} at {path!r}; name it by {name}=, or pass {name}=None"
            ) from error
        return found

    @property
    def vocabulary_head(self) -> nn.Module | None:
        """The module whose output is the logits, where it is known."""
        return self._part("head")

    @property
    def input_embeddings(self) -> nn.Module | None:
        """The table of input embeddings, where it is known."""
        return self._part("embedding") or input_table(unwrap(self.model)[0])

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks in order, where they are known; none elsewhere."""
        model = unwrap(self.model)[0]
        stated = self._part("blocks")
        if stated is not None:
            return list(stated.children())
        if not any(isinstance(module, nn.ModuleList) for module in self.modules()):
            return []
        return blocks_of(cast(nn.Module, model))

    @property
    def block_length(self) -> int | None:  # type: ignore[override]
        """Positions in a block, or None for attention both ways."""
        return self.call_signature.block_length

    @property
    def shifted(self) -> bool:  # type: ignore[override]
        """Whether logits at a position predict the token behind it."""
        return self.call_signature.shifted

    @property
    def time_conditioned(self) -> bool:
        """Whether its logits depend on ``t``; if not, samplers evaluate equal states once."""
        return self.call_signature.time is not None and self.call_signature.time_conditioning

    @property
    def num_classes(self) -> int | None:
        """How many token ids the model reads; None where it does not state it."""
        return getattr(self.input_embeddings, "num_embeddings", None)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Enable the model's own, as transformers' Trainer calls it."""
        cast(Any, self.model).activation_checkpointing_enable(**options)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Enable the model's own, as transformers' Trainer calls it."""
        cast(Any, self.model).gradient_checkpointing_enable(**options)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the model by its own ``save_pretrained``, or ``model.safetensors`` where it has none, and
        ``denoiser.json``, how it is called; `load_denoiser` reads models of transformers back.

        Raises:
            ValueError: if there are LoRA weights that were not merged, or it is passed the time of its own schedule.
            TypeError: if it is a function.
        """
        refuse_unmerged(self)
        model = unwrap(self.model)[0]
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
        called = json.dumps(asdict(self.call_signature), indent=2)
        (directory / DENOISER_FILE).write_text(called, encoding="utf-8")

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """Raw logits ``[B, L, V]`` of ids ``[B, L]`` at times ``[B]``."""
        return self._aligned(self._run(x_t, t, attention_mask, inputs_embeds, model_kwargs), attention_mask)

    def features(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """What the head reads, ``[B, L, D]``."""
        with set_aside(cast(nn.Module, self.vocabulary_head)):
            return self._aligned(self._run(x_t, t, attention_mask, inputs_embeds, model_kwargs), attention_mask)

    def project(self, features: Tensor) -> Tensor:
        """Vocabulary logits ``[..., V]`` of features ``[..., D]``."""
        return cast(nn.Module, self.vocabulary_head)(features)

    def embed(self, x_t: Tensor) -> Tensor:
        """Input embeddings ``[B, L, D]`` of ids ``[B, L]``; ESM-2's embeddings of masks are zero."""
        h_BLD: Tensor = cast(nn.Module, self.input_embeddings)(x_t)
        for layer in self._token_dropout_layers():
            if layer.token_dropout:
                h_BLD = h_BLD.masked_fill((x_t == layer.mask_token_id)[..., None], 0.0)
        return h_BLD

    def embedding_weight(self) -> Tensor:
        """Input embeddings ``[V, D]`` of all ids."""
        table: Any = self.input_embeddings
        if type(table) is nn.Embedding and table.max_norm is None:
            return table.weight
        weight = next(table.parameters())  # A table of its own kind may scale what it looks up.
        return table(torch.arange(len(weight), device=weight.device))

    def hidden_states(
        self,
        x_t: Tensor,
        t: Tensor,
        layer: int,
        *,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """Output ``[B, L, D]`` of block ``layer``, counted from 0; not moved where the model is shifted."""
        head = self.vocabulary_head
        with output_kept(self.blocks[layer]) as kept, nullcontext() if head is None else set_aside(head):
            self._run(x_t, t, attention_mask, inputs_embeds, model_kwargs, eager=True)
        return kept[-1][: len(x_t)]

    def read_part(
        self,
        x: Tensor,
        t: Tensor,
        cache: BlockCache | None,
        positions: Tensor,
        mask: Tensor | None,
        model_kwargs: dict[str, Any],
    ) -> Tensor:
        """See `BlockReading`."""
        batch, length = x.shape
        given = {
            **model_kwargs,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        if self.call_signature.attention == "full":
            mask = torch.ones_like(x, dtype=torch.bool)[:, None, None, :] if mask is None else mask
            given["attention_mask"] = additive(mask.expand(batch, -1, length, -1), self._dtype())
        elif mask is not None:
            given["attention_mask"] = mask.expand(batch, -1, length, -1)
        with set_aside(cast(nn.Module, self.vocabulary_head)):
            return self._send(x, t, given)

    def weights_dtype(self) -> torch.dtype:
        """Of the model's first floating weight."""
        return self._dtype()

    def _read(
        self,
        x: Tensor,
        t: Tensor,
        cache: BlockCache,
        positions: Tensor,
        model_kwargs: dict[str, Any],
        *,
        all_read: bool = False,
    ) -> Tensor:
        if not isinstance(cache, ListedCache):
            return super()._read(x, t, cache, positions, model_kwargs, all_read=all_read)
        first, last = cache.span(positions)
        with cache.lent(first, last) as keywords, set_aside(cast(nn.Module, self.vocabulary_head)):
            if "dual_cache" in self.keywords.names:  # Dream's switch
                keywords["dual_cache"] = "replace_position" in keywords
            output = self._output(x[:, : last - first], t, {**model_kwargs, **keywords})
        if not cache.size:
            cache.take(output.past_key_values)
        return F.pad(_logits_of(output), (0, 0, 0, x.shape[1] - (last - first)))

    def _run(
        self,
        x_t: Tensor,
        t: Tensor,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        model_kwargs: Mapping[str, Any],
        *,
        eager: bool = False,
    ) -> Tensor:
        if not len(x_t):  # Many models cannot reshape a batch of no rows: one row is run, and none of it returned.
            kwargs = {name: _one_row(value) for name, value in model_kwargs.items()}
            given = [_one_row(each) for each in (x_t, t, attention_mask, inputs_embeds)]
            return self._run(given[0], given[1], given[2], given[3], kwargs, eager=eager)[:0]
        if inputs_embeds is None:
            return self._call(x_t, t, attention_mask, model_kwargs, eager=eager)
        table = self.input_embeddings
        if table is None:
            raise TypeError(
                f"a {type(self.model).__name__} has no known table of input embeddings for inputs_embeds to replace: "
                "name it, as_denoiser(model, embedding=...)"
            )
        with replaced(table, lambda *_, **__: inputs_embeds):
            return self._call(x_t, t, attention_mask, model_kwargs, embedded=True, eager=True)

    def _call(
        self, x_t: Tensor, t: Tensor, attention_mask: Tensor | None, model_kwargs: Mapping[str, Any], **how: bool
    ) -> Tensor:
        return self._send(x_t, t, {**self._attention(x_t, attention_mask), **model_kwargs}, **how)

    def _send(self, x_t: Tensor, t: Tensor, keywords: dict[str, Any], **how: bool) -> Tensor:
        return _logits_of(self._output(x_t, t, keywords, **how))

    def _output(
        self, x_t: Tensor, t: Tensor, keywords: dict[str, Any], *, embedded: bool = False, eager: bool = False
    ) -> Any:
        positional: list[Tensor] = []
        self.keywords.check(keywords, self.model)
        refuse_longer(x_t, self._longest, keywords, unwrap(self.model)[0])
        arguments = [(self.call_signature.ids, x_t)]
        if self.call_signature.time is not None:
            sigma = self.schedule.sigma(t) if self.call_signature.time_conditioning else torch.zeros_like(t)
            arguments.append((self.call_signature.time, sigma))
        for name, value in arguments:
            if name == POSITIONAL:
                positional.append(value)
            else:
                keywords[name] = value
        # A compiled model would keep the table and the hooks of its first call.
        model = getattr(self.model, "_orig_mod", self.model) if eager else self.model
        if not self._token_dropout:
            return model(*positional, **keywords)
        layers = self._token_dropout_layers()
        with finite_token_dropout(layers, x_t, keywords.get("attention_mask"), zero_masks=not embedded):
            return model(*positional, **keywords)

    def _token_dropout_layers(self) -> list[Any]:
        return [cast(nn.Module, self.model).get_submodule(name) for name in self._token_dropout]

    def _attention(self, x_t: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
        kind = self.call_signature.attention
        real = None if attention_mask is None else real_tokens(attention_mask, x_t.shape)
        if kind == "full":
            positions = row_positions(torch.ones_like(x_t, dtype=torch.bool) if real is None else real)
            mask = readable(positions, positions, self.block_length)
            counted = {} if real is None else {"position_ids": positions.clamp(min=0)}
            counted = counted if "position_ids" in self.keywords.names else {}
            return {"attention_mask": additive(mask.expand(-1, -1, x_t.shape[1], -1), self._dtype()), **counted}
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
        # Padding reads itself, so that no row of the softmax is empty; no other position reads it.
        itself = torch.eye(x_t.shape[1], dtype=torch.bool, device=x_t.device)
        return {"attention_mask": pairs | itself, "position_ids": (real.cumsum(1) - 1).masked_fill(~real, 1)}

    def _dtype(self) -> torch.dtype:
        return next((value.dtype for value in self.parameters() if value.is_floating_point()), torch.float32)

    def _aligned(self, values_BLX: Tensor, attention_mask: Tensor | None) -> Tensor:
        """In the place of the token that they speak of. The first real token has none before it and keeps its own."""
        if not self.call_signature.shifted:
            return values_BLX
        if attention_mask is None:
            return torch.cat((values_BLX[:, :1], values_BLX[:, :-1]), dim=1)
        source = places_before(real_tokens(attention_mask, values_BLX.shape[:2]))
        return values_BLX[torch.arange(len(source), device=source.device)[:, None], source]


def _one_row(value: Any) -> Any:
    """Ones in the place of a tensor of no rows; anything else as it is."""
    return value.new_ones((1, *value.shape[1:])) if isinstance(value, Tensor) and not len(value) else value


def _logits_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output["logits"]
    logits = getattr(output, "logits", None)
    return logits if logits is not None else output[0]
