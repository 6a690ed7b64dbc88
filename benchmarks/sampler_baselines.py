"""What the samplers are compared with: the published chain over all of ``[B, L, V]``, and other packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_baselines import eager_step

Sample = Callable[[], Any]
Step = Callable[..., Tensor]


def published_chain(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, int],
    mask: int,
    num_steps: int,
    *,
    dtype: torch.dtype = torch.float32,
    step: Step = eager_step,
    device: torch.device | str = "cpu",
) -> Sample:
    """The reverse process as research code runs it (arXiv 2406.07524): logits of all positions in every step, mask and
    token in one categorical by Gumbel noise; the last step, to 0, leaves no mask."""

    def sample() -> Tensor:
        x_t = torch.full(shape, mask, device=device)
        for number in range(num_steps):
            alpha_t, alpha_s = number / num_steps, (number + 1) / num_steps
            t = torch.full(shape[:1], 1.0 - alpha_t, device=device)
            x_t = step(denoiser(x_t, t), x_t, mask, alpha_t, alpha_s, dtype)
        return x_t

    return torch.no_grad()(sample)


def other_packages(logits: Tensor, mask: int, num_steps: int) -> dict[str, Sample]:
    """The samplers of packages that are installed, with the same logits in every step."""
    made: dict[str, Sample] = {}
    for name, make in (("bionemo-moco", _moco), ("flow_matching", _flow_matching)):
        try:
            made[name] = torch.no_grad()(make(logits, mask, num_steps))
        except ImportError:
            print(f"{name} is not installed: left out", flush=True)
    return made


def _moco(logits: Tensor, mask: int, num_steps: int) -> Sample:
    from bionemo.moco.distributions.prior import DiscreteMaskedPrior
    from bionemo.moco.distributions.time import UniformTimeDistribution
    from bionemo.moco.interpolants import MDLM
    from bionemo.moco.schedules.noise.continuous_noise_transforms import LogLinearExpNoiseTransform

    interpolant = MDLM(
        UniformTimeDistribution(), DiscreteMaskedPrior(logits.shape[-1], mask_dim=mask), LogLinearExpNoiseTransform()
    )

    def sample() -> Tensor:
        x_t = torch.full(logits.shape[:2], mask)
        for number in range(num_steps):
            t = torch.full(logits.shape[:1], 1.0 - number / num_steps)
            # Its step writes into the logits, so it gets its own.
            x_t = interpolant.step(logits.clone(), t, x_t, torch.full_like(t, 1.0 / num_steps))
        return x_t

    return sample


def _flow_matching(logits: Tensor, mask: int, num_steps: int) -> Sample:
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler
    from flow_matching.solver import MixtureDiscreteEulerSolver
    from flow_matching.utils import ModelWrapper

    class FixedLogits(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
            return logits.softmax(-1)

    path = MixtureDiscreteProbPath(PolynomialConvexScheduler(n=1.0))
    solver = MixtureDiscreteEulerSolver(FixedLogits(torch.nn.Identity()), path, logits.shape[-1])
    times = torch.linspace(0.0, 1.0, num_steps + 1)
    return lambda: solver.sample(torch.full(logits.shape[:2], mask), step_size=None, time_grid=times)
