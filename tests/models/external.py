"""Small models of other libraries, with random weights, for tests."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from discrete_distill.models import DiT

transformers = pytest.importorskip("transformers")

V, MASK, LENGTH = 12, 11, 7
SIZE = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
REAL = torch.arange(LENGTH) < torch.tensor([[LENGTH], [4], [6]])
SPECIAL = {"pad_token_id": 0, "mask_token_id": MASK, "bos_token_id": 1, "eos_token_id": 2}


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(1, V, (3, LENGTH), generator=generator)
    x[:, 2] = MASK
    return x, torch.rand(3, generator=generator)


def randomised(model: nn.Module) -> Any:
    """All weights random: biases and norms too, so that nothing hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def masked_lm(kind: str) -> Any:
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**SIZE, max_position_embeddings=16))
    if kind == "roberta":
        return transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SIZE, max_position_embeddings=16))
    if kind == "electra":
        return transformers.ElectraForMaskedLM(
            transformers.ElectraConfig(**SIZE, embedding_size=16, max_position_embeddings=16)
        )
    if kind == "distilbert":
        return transformers.DistilBertForMaskedLM(
            transformers.DistilBertConfig(
                vocab_size=V, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=16
            )
        )
    if kind == "modernbert":
        special = {f"{name}_token_id": 0 for name in ("pad", "cls", "sep", "bos", "eos")}
        return transformers.ModernBertForMaskedLM(
            transformers.ModernBertConfig(**SIZE, **special, max_position_embeddings=16)
        )
    config = transformers.EsmConfig(
        **SIZE,
        max_position_embeddings=16,
        pad_token_id=0,
        mask_token_id=MASK,
        position_embedding_type="rotary",
        token_dropout=kind == "esm-2",
    )
    return transformers.EsmForMaskedLM(config)


KINDS = ["bert", "roberta", "electra", "distilbert", "modernbert", "esm", "esm-2"]


class TinyLLaDA(nn.Module):
    """LLaDA as its repository calls it: ``model.transformer.ff_out`` last, a padding mask, attention both ways."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="llada", **config)
        llama = transformers.LlamaModel(transformers.LlamaConfig(**SIZE, max_position_embeddings=16))
        head = nn.Linear(16, V, bias=False)
        self.model = nn.Module()
        self.model.transformer = nn.ModuleDict({"trunk": llama, "ff_out": head})

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        batch, length = input_ids.shape
        bias = torch.zeros(batch, 1, length, length)
        if attention_mask is not None:
            bias = bias.masked_fill(attention_mask[:, None, None, :] == 0, torch.finfo(torch.float32).min)
        h = self.model.transformer.trunk(input_ids=input_ids, attention_mask=bias).last_hidden_state
        return SimpleNamespace(logits=self.model.transformer.ff_out(h))


class TinyDream(nn.Module):
    """Dream as its repository calls it: ``"full"`` or a bool mask of pairs, positions of real tokens, shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="Dream")
        self.model = transformers.Qwen2Model(
            transformers.Qwen2Config(
                **SIZE, num_key_value_heads=1, max_position_embeddings=16, attn_implementation="eager"
            )
        )
        self.lm_head = nn.Linear(16, V, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | str = "full",
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Any:
        batch, length = input_ids.shape
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        allowed = torch.ones(batch, 1, length, before + length, dtype=torch.bool)
        if isinstance(attention_mask, Tensor):
            assert attention_mask.shape == allowed.shape
            allowed = attention_mask
        self.positions = position_ids
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)  # a row of nothing but these gives NaN
        h = self.model(
            input_ids=input_ids,
            attention_mask=bias,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        ).last_hidden_state
        return SimpleNamespace(logits=self.lm_head(h))


class ResearchNetwork(nn.Module):
    """The transformer of the MDLM, DUO, SDTT and DiDi-Instruct code: called with ids and sigma, by position."""

    def __init__(self, dit: DiT, config: Any = None) -> None:
        super().__init__()
        self.vocab_embed, self.output_layer = dit.vocab_embed, dit.output_layer
        self.inner, self.config = [dit], config
        self.sigmas: list[Tensor] = []

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        self.sigmas.append(sigma)
        t = -torch.expm1(-sigma) / (1.0 - 1e-3)
        h, cond = self.inner[0].trunk(self.vocab_embed(indices), t)
        return self.output_layer.linear(self.output_layer.features(h, cond))


class HubNetwork(nn.Module):
    """The class in the hub repositories of MDLM and DUO: by keyword, and logits as they come, or in a tuple."""

    def __init__(self, network: ResearchNetwork, time_conditioning: bool, pack: bool) -> None:
        super().__init__()
        self.backbone, self.pack = network, pack
        self.config = SimpleNamespace(model_type="mdlm", time_conditioning=time_conditioning)

    def forward(self, input_ids: Tensor, timesteps: Tensor) -> Any:
        logits = self.backbone(input_ids, timesteps)
        return (logits, []) if self.pack else logits
