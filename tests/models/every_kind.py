"""One small denoiser of every kind of model that the library takes, with random weights."""

import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from external import SIZE, TinyDream, V, masked_lm, randomised, transformers
from torch import Tensor, nn

from discrete_distill import as_denoiser
from discrete_distill.models import DiT, DiTConfig

MASKED_LMS = ("bert", "roberta", "distilbert", "modernbert", "esm-2")
NETWORKS = (*MASKED_LMS, "llada", "dream", "llama", "tied llama", "gemma2", "dit")
KINDS = (*NETWORKS, "function")


class Pair(nn.Module):
    """A block of LLaDA's: it returns its output and a cache."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.up, self.down = (nn.Linear(width, width) for _ in range(5))

    def forward(self, h: Tensor, allowed: Tensor | None) -> tuple[Tensor, None]:
        q, k, v = (part(h)[:, None] for part in (self.q_proj, self.k_proj, self.v_proj))
        h = h + F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)[:, 0]
        return h + self.down(F.silu(self.up(h))), None


class PairedLLaDA(nn.Module):
    """LLaDA with the modules of its repository: ``wte``, ``blocks`` that return pairs, ``ln_f``, ``ff_out``."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="llada")
        parts = {
            "wte": nn.Embedding(V, 16),
            "blocks": nn.ModuleList(Pair(16) for _ in range(2)),
            "ln_f": nn.LayerNorm(16),
            "ff_out": nn.Linear(16, V, bias=False),
        }
        self.model = nn.Module()
        self.model.transformer = nn.ModuleDict(parts)

    def get_input_embeddings(self) -> Any:
        return self.model.transformer["wte"]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        parts: Any = self.model.transformer
        allowed = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        h = parts["wte"](input_ids)
        for block in parts["blocks"]:
            h, _ = block(h, allowed)
        return SimpleNamespace(logits=parts["ff_out"](parts["ln_f"](h)))


class EmbeddedDream(TinyDream):
    """Dream, which names its table as models of transformers do."""

    def get_input_embeddings(self) -> Any:
        return self.model.embed_tokens


def causal(kind: str, **config: Any) -> Any:
    made = getattr(transformers, f"{kind}Config")
    return getattr(transformers, f"{kind}ForCausalLM")(
        made(**SIZE, num_key_value_heads=1, head_dim=8, max_position_embeddings=16, **config)
    )


def bare(x_t: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
    """A function of tokens: it prefers what stands beside a position."""
    near = F.one_hot(x_t.roll(1, 1), V) + F.one_hot(x_t.roll(-1, 1), V)
    return 2.0 * near.float()


@cache
def teacher(kind: str) -> Any:
    """The denoiser of a kind, in evaluation mode; the same object at each call."""
    if kind == "function":
        return as_denoiser(bare)
    torch.manual_seed(0)
    if kind == "dit":
        config = DiTConfig(vocab_size=V, max_length=16, hidden_size=16, num_layers=2, num_heads=2, cond_size=8)
        return randomised(DiT(config))
    if kind in MASKED_LMS:
        return as_denoiser(randomised(masked_lm(kind)))
    if kind == "llada":
        return as_denoiser(randomised(PairedLLaDA()))
    if kind == "dream":
        return as_denoiser(randomised(EmbeddedDream()))
    if kind == "gemma2":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its head cannot be run apart
            return as_denoiser(randomised(causal("Gemma2")), attention="full", shifted=True)
    model = randomised(causal("Llama", tie_word_embeddings=kind == "tied llama"))
    return as_denoiser(model, attention="full", shifted=True)
