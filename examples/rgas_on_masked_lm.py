"""RGAS alone on a Hugging Face masked language model: a tiny BERT as denoiser, steered by a classifier of one's own.

``python -m examples.rgas_on_masked_lm``
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from discrete_distill import AncestralSampler, RGASampler, as_denoiser
from examples.toy import CHAIN, LENGTH, PROCESS, surprise


class WantsFewOnes(nn.Module):
    """Any `RatioNetwork`: logits ``[B, L]``, positive where a token is unwelcome. This one dislikes word 1."""

    def forward(self, x_t: Tensor, t: Tensor, **model_kwargs: Tensor) -> Tensor:
        return 20.0 * (x_t == 1).float()


def main(steps: int = 300) -> dict[str, float]:
    """Teach a tiny BERT the toy language, then sample it with and without re-ranking."""
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    bert = BertForMaskedLM(BertConfig(vocab_size=9, max_position_embeddings=LENGTH, **shape))
    optimizer = torch.optim.AdamW(bert.parameters(), lr=2e-3)
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = CHAIN.sample(64, LENGTH, generator=g)
        x_t = PROCESS.corrupt(x, torch.rand(64, generator=g), generator=g)
        labels = torch.where(PROCESS.is_masked(x_t), x, -100)
        F.cross_entropy(bert(input_ids=x_t).logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    denoiser = as_denoiser(bert.eval())
    plain, guided = AncestralSampler(PROCESS, num_steps=8), RGASampler(PROCESS, reward=WantsFewOnes(), num_steps=8)
    free = plain(denoiser, (64, LENGTH), generator=torch.Generator().manual_seed(1))
    steered = guided(denoiser, (64, LENGTH), generator=torch.Generator().manual_seed(1))
    shares = {name: float((out.sequences == 1).float().mean()) for name, out in (("plain", free), ("RGAS", steered))}
    print("share of word 1:", ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
    print(f"network evaluations: plain {free.network_evaluations}, RGAS {steered.network_evaluations}")
    print(
        f"plain samples cost {surprise(denoiser, 8):.3f} nats a word, the language {CHAIN.entropy(LENGTH) / LENGTH:.3f}"
    )
    return shares


if __name__ == "__main__":
    main()
