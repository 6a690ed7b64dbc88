"""A toy language for the examples: a Markov chain of 8 words, whose every probability is known, and teachers of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from discrete_distill import AncestralSampler, MaskedDiffusion, SharedBase, as_denoiser
from discrete_distill.exact import large_chain
from discrete_distill.models import DiT, DiTConfig, load_denoiser

CHAIN, LENGTH = large_chain()
PROCESS = MaskedDiffusion(mask_token_id=8)
SHAPE = {"vocab_size": 9, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}


def tiny_dit() -> DiT:
    shape = {"hidden_size": 48, "num_layers": 2, "num_heads": 2, "cond_size": 16, "dropout": 0.0}
    return DiT(DiTConfig(vocab_size=9, max_length=LENGTH, **shape))


def tiny_bert() -> Any:
    """A masked language model of transformers."""
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return as_denoiser(BertForMaskedLM(BertConfig(**SHAPE, **no_dropout, max_position_embeddings=LENGTH)).eval())


def tiny_llama() -> Any:
    """Causal code that reads both ways; its logits predict the next token."""
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=LENGTH)).eval()
    return as_denoiser(model, attention="full", shifted=True)


KINDS: dict[str, Callable[[], Any]] = {"dit": tiny_dit, "bert": tiny_bert, "llama": tiny_llama}


def get_teacher(kind_or_folder: str = "dit", steps: int = 400) -> Any:
    """A small masked diffusion model of the chain: of a kind and trained here, or from a folder that `load_denoiser`
    reads."""
    if kind_or_folder not in KINDS:
        loaded: Any = load_denoiser(kind_or_folder)
        classes = loaded.config.vocab_size if isinstance(loaded, DiT) else loaded.num_classes
        if classes != 9:
            raise ValueError(f"{kind_or_folder} has {classes} classes; the toy language has 8 words and a mask")
        return loaded
    torch.manual_seed(0)
    teacher = KINDS[kind_or_folder]()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        loss = PROCESS.nelbo(teacher, CHAIN.sample(64, LENGTH, generator=g), by="count", generator=g).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return teacher.eval()


def sharing_of(name: str) -> Literal["copies"] | SharedBase:
    """The argument of `make_networks` that ``--sharing`` names."""
    return SharedBase(rank=8) if name == "adapters" else "copies"


def arguments() -> dict[str, str]:
    """``--teacher`` and ``--sharing`` of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", default="dit", help=f"{', '.join(KINDS)}, or a folder that load_denoiser reads")
    parser.add_argument("--sharing", choices=("copies", "adapters"), default="copies")
    return vars(parser.parse_args())


def surprise(denoiser, num_steps: int, count: int = 512) -> float:
    """``-log P(x)`` per word of samples, in nats. Near the chain's own entropy is right; below it is collapse."""
    g = torch.Generator().manual_seed(1)
    x = AncestralSampler(PROCESS, num_steps=num_steps)(denoiser, (count, LENGTH), generator=g).sequences.cpu()
    return float(-CHAIN.log_prob(x).mean()) / LENGTH


def report(teacher, student, num_steps: int = 2) -> dict[str, float]:
    """Print and return what teacher and student cost the chain, and what its own samples cost."""
    found = {
        "teacher": surprise(teacher, num_steps),
        "student": surprise(student, num_steps),
        "language": CHAIN.entropy(LENGTH) / LENGTH,
    }
    print(f"nats per word in {num_steps} steps:", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found
