"""The autoregressive baseline: GPT-2's architecture at the teacher's size, on the teacher's text, sampled with a cache.

A sequence is the text of a window, as for the denoisers: the mask stands before it as a start sign, and all its tokens
are predicted, so that likelihoods can be compared. A frame such as ``[CLS] ... [SEP]`` is put around it afterwards.

Shape suffixes: B batch, L length, V vocabulary (mask included).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from ... import draws
from ...checks import check_number
from ...kernels import sample_rows
from ...process import MaskedDiffusion
from ...samplers import SamplerOutput
from ...training import LoopConfig, ModuleOptimizer, OptimizerConfig
from ..common.corpus import TokenStream
from ..common.likelihood import LikelihoodConfig, from_scratch
from ..common.network_shape import NetworkShape
from ..text.judge import WEIGHTS_FILE, JudgeConfig, load_gpt2


@dataclass(kw_only=True)
class AutoregressiveConfig(LikelihoodConfig):
    """The baseline; its width, depth, heads and vocabulary are the teacher's.

    Args:
        path: folder of a trained one, or empty to train it.
        loop: how long.
        optimizer: how; the teacher's recipe.
        batch_size: sequences per update.
        dropout: everywhere, while it is trained.
    """

    stage: ClassVar[str] = "autoregressive"

    path: str = ""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(num_steps=8000, log_every=20))
    optimizer: OptimizerConfig = field(default_factory=lambda: from_scratch(warmup_steps=50, ema_decay=0.99))
    batch_size: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("--autoregressive.dropout", self.dropout, minimum=0.0, exclusive_maximum=1.0)


def network_of_size(teacher: NetworkShape, length: int, eos_token_id: int, dropout: float = 0.0) -> nn.Module:
    """A GPT-2 of the teacher's width, depth, heads and vocabulary for sequences of a length; weights random."""
    from transformers import GPT2LMHeadModel

    shape = JudgeConfig(
        vocab_size=teacher.vocab_size,
        eos_token_id=eos_token_id,
        context=length,
        hidden_size=teacher.hidden_size,
        num_layers=teacher.num_layers,
        num_heads=teacher.num_heads,
        dropout=dropout,
    )
    return GPT2LMHeadModel(shape.network_config())


def load_autoregressive(folder: Path) -> nn.Module:
    """One that was written with ``save_pretrained``; strictly, in fp32, in evaluation mode."""
    if not (folder / WEIGHTS_FILE).exists():
        raise FileNotFoundError(f"no autoregressive model in {folder}; train it first, or name another folder")
    network: nn.Module = load_gpt2(folder)
    return network


def token_nats(network: nn.Module, x: Tensor, process: MaskedDiffusion) -> Tensor:
    """``-log p(x_i | start, x_1 .. x_{i-1})`` of every token, fp32 ``[B, L]``; neither the start sign nor a forbidden
    token is predicted."""
    start = torch.full_like(x[:, :1], process.mask_token_id)
    logits_BLV = network(input_ids=torch.cat((start, x[:, :-1]), dim=1)).logits.float()
    logits_BLV = process.forbid(logits_BLV)
    logits_BLV = logits_BLV.index_fill(2, torch.tensor([process.mask_token_id], device=x.device), float("-inf"))
    return F.cross_entropy(logits_BLV.flatten(0, 1), x.flatten(), reduction="none").view_as(x)


class AutoregressiveTraining:
    """A `StudentTraining` that learns text by next-token likelihood."""

    def __init__(
        self,
        config: AutoregressiveConfig,
        teacher: NetworkShape,
        stream: TokenStream,
        process: MaskedDiffusion,
        eos_token_id: int,
        accelerator: Accelerator,
    ) -> None:
        self.config = config
        self.stream = stream
        self.process = process
        self.accelerator = accelerator
        network = network_of_size(teacher, stream.text_length, eos_token_id, config.dropout).to(accelerator.device)
        self.student = ModuleOptimizer(network, config.optimizer, config.loop.num_steps, accelerator)
        self.discriminator: ModuleOptimizer | None = None

    def saved(self) -> dict[str, ModuleOptimizer]:
        """What a checkpoint holds."""
        return {"student": self.student}

    def networks(self) -> list[nn.Module]:
        """All networks that a step calls."""
        return [self.student.module]

    def step(self, index: int, generator: Generator) -> dict[str, float]:
        """One update on random windows of the text."""
        crops = self.stream.crops(self.config.batch_size, generator=generator)
        x = crops[:, self.stream.text_mask()].to(self.accelerator.device)
        with self.accelerator.autocast():
            loss = token_nats(self.student.module, x, self.process).mean()
        metrics = self.student.step(loss)
        return {"loss": float(loss.detach()), **{f"student_{key}": value for key, value in metrics.items()}}


@dataclass(frozen=True)
class AutoregressiveSampler:
    """Draws token after token; past keys and values are kept, so each evaluation reads one token.

    Args:
        process: its mask stands before the first token; neither that nor a forbidden token is drawn.
        temperature: of the tokens.
    """

    process: MaskedDiffusion
    temperature: float = 1.0

    @torch.no_grad()
    def __call__(
        self,
        network: Any,
        shape: tuple[int, int],
        *,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        use_cache: bool = True,
    ) -> SamplerOutput:
        """Draw ``shape = (B, L)`` tokens; a seed gives the same ones with and without the cache, up to rounding.

        ``nfe`` is ``L``: each costs about a token's share of a denoiser's evaluation.
        """
        batch, length = shape
        place = device if device is not None else next(network.parameters()).device
        seed = draws.seed(device=place, generator=generator)
        mask = self.process.mask_token_id
        x = torch.full((batch, 1), mask, dtype=torch.long, device=place)
        rows = torch.arange(batch, device=place)
        log_probs, past = [], None
        for position in range(length):
            given = x[:, -1:] if use_cache and position else x
            out = network(input_ids=given, past_key_values=past, use_cache=use_cache)
            past = out.past_key_values if use_cache else None
            drawn = sample_rows(
                self.process.forbid(out.logits[:, -1]),
                seed=seed,
                positions_R=rows,
                step=position,
                temperature=self.temperature,
                mask_token_id=mask,
            )
            x = torch.cat((x, drawn.tokens), dim=1)
            log_probs.append(drawn.log_probs)
        return SamplerOutput(x[:, 1:], length, length, torch.cat(log_probs, dim=1), rows.new_full((batch,), length))
