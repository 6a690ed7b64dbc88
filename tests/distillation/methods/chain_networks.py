"""Small networks for the method's tests, and counters of what they are asked."""

from typing import Any

import torch
from torch import Tensor, nn

from discrete_distill import DiDiInstruct, DiDiInstructConfig, Discriminator, exact
from discrete_distill.distillation.methods import Regularization, VocabularyCredit
from discrete_distill.distillation.networks import Networks
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import MaskedDiffusion

PROCESS = MaskedDiffusion(5)
LENGTH = 6
SHAPE: dict[str, Any] = {
    "vocab_size": 6,
    "max_length": LENGTH,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "cond_size": 8,
    "dropout": 0.0,
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_dit(seed: int, **settings: Any) -> DiT:
    """All weights random: at its own start the head is zero."""
    network = DiT(DiTConfig(**{**SHAPE, **settings})).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3, generator=seeded(seed))
    return network


def small_method(config: DiDiInstructConfig | None = None) -> DiDiInstruct:
    """Student, teacher, discriminator and auxiliary with different weights."""
    torch.manual_seed(0)
    config = config if config is not None else DiDiInstructConfig.recommended(regularization=Regularization())
    told = isinstance(config.credit, VocabularyCredit) or getattr(config.log_ratio, "step_conditioning", False)
    discriminator = Discriminator(DiTConfig(**SHAPE), trainable_blocks=1)
    with torch.no_grad():
        for block in discriminator.backbone.blocks:
            block.adaLN_modulation.weight.normal_(std=0.3, generator=seeded(3))
    return DiDiInstruct(
        Networks(
            small_dit(0, step_conditioning=config.paths.step_conditioning),
            small_dit(1),
            auxiliary=small_dit(2, step_conditioning=told),
            discriminator=discriminator,
        ),
        PROCESS,
        config,
    )


def count_calls(network: nn.Module, name: str = "trunk") -> list[int]:
    """The batch sizes that ``network.name`` will have been called with."""
    sizes: list[int] = []
    inner = getattr(network, name)

    def loss_mask(h: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        sizes.append(len(h))
        return inner(h, *arguments, **settings)

    setattr(network, name, loss_mask)
    return sizes


class ChainAndMore(nn.Module):
    """The chain's perfect denoiser plus a small network that starts at zero: a trained teacher that can learn."""

    accepts_step = True

    def __init__(self, chain: exact.MarkovChain, seed: int) -> None:
        super().__init__()
        self.base = chain.denoiser(5)
        torch.manual_seed(seed)
        self.more = DiT(DiTConfig(**{**SHAPE, "hidden_size": 48, "step_conditioning": True}))

    def forward(self, x_t: Tensor, t: Tensor, /, *, s: Tensor | None = None) -> Tensor:
        return self.base(x_t, t).float().clamp_min(-30.0) + self.more(x_t, t, s=s)
