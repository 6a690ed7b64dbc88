"""Likelihoods of a comparison: bounds of denoisers, values of autoregressive models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import GPT2LMHeadModel

from ...evaluation import likelihood_bound
from ...training import fold_seed
from ..common.run import Run
from .autoregressive import token_nats
from .evaluated_models import EvaluatedModel
from .settings import ComparisonConfig


def likelihoods(
    run: Run, config: ComparisonConfig, models: list[EvaluatedModel], heldout: Tensor
) -> list[dict[str, Any]]:
    """Measure held-out text and the given files, one line a network."""
    texts = {"held-out": heldout}
    for file in config.texts:
        streams = run.streams_of(str(file))
        texts[file.name] = torch.cat([stream.packed() for stream in streams.values()]).to(heldout.device)
    count = config.bound_sequences
    return [
        {"method": model.name, "text": name, **_likelihood(run, model.network, x[:: max(1, len(x) // count)][:count])}
        for model in models
        if not model.name.endswith("+ RGAS")
        for name, x in texts.items()
    ]


@torch.no_grad()
def _likelihood(run: Run, network: nn.Module, x: Tensor) -> dict[str, Any]:
    meant = run.streams["heldout"].text_mask()
    if isinstance(network, GPT2LMHeadModel):
        parts = x[:, meant].split(32)
        nats_N = torch.cat([token_nats(network, part, run.process).mean(1) for part in parts])
        error = float(nats_N.std() / len(x) ** 0.5) if len(x) > 1 else None
        return {"nats_per_token": float(nats_N.mean()), "standard_error": error, "bound": False}
    generator = Generator(device=x.device).manual_seed(fold_seed("likelihood"))
    with run.accelerator.autocast():
        out = likelihood_bound(run.process, network, x, generation_mask=meant, repeats=4, generator=generator)
    return {"nats_per_token": out.nats_per_token, "standard_error": out.standard_error, "bound": True}
