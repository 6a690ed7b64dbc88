"""ReMDM: ancestral sampling that hides written tokens again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..checks import check_choice, check_number
from ..kernels import STREAM_REMASK, STREAM_UNMASK
from .grid import walk_grid
from .options import GridOptions
from .positions import planned_positions
from .state import SamplerState
from .trajectory import Recorder

DEFAULT_ETA = {"cap": 0.02, "rescale": 0.05, "conf": 1.0}


@dataclass(frozen=True, kw_only=True)
class ReMaskingSampler(GridOptions):
    r"""ReMDM (arXiv 2503.00307): written tokens are masked again with probability ``sigma``, and drawn anew later.

    .. math::
        P(x_s = m \mid x_t \ne m) = \sigma, \qquad
        P(x_s \ne m \mid x_t = m) = \frac{\alpha_s - (1 - \sigma) \alpha_t}{1 - \alpha_t},

    which keeps the marginals of the forward process for any ``sigma`` up to
    ``sigma_max = min(1, (1 - alpha_s) / alpha_t)``. Given and padded tokens are never masked. The last step ends at 0,
    where ``sigma_max = 0``.

    - "cap": ``sigma = min(eta, sigma_max)``. Unmasking and remasking draws do not depend on logits and are planned.
    - "rescale": ``sigma = eta sigma_max``. Likewise.
    - "conf": ``sigma_i = eta sigma_max softmax(-psi)_i`` over the written tokens of a sequence, ``psi_i`` the
      probability with which token ``i`` was drawn; masked positions are revealed as with ``sigma = 0``.

    ``eta = 0`` is the ancestral sampler, token for token.

    Args:
        strategy: "cap", "rescale" or "conf".
        eta: strength in ``[0, 1]``; by default 0.02, 0.05 and 1.

    The other options are those of `GridOptions` and `SamplerOptions`. Remasking pays when steps are many (the paper: as
    many as tokens, and more); the paper draws with ``top_p=0.9``.

    Raises:
        ValueError: if the strategy is unknown or ``eta`` out of range.

    Examples:
        >>> sampler = ReMaskingSampler(MaskedDiffusion(8, LinearSchedule()), num_steps=4, strategy="rescale", eta=0.5)
        >>> sampler.sigma(torch.tensor(0.5), torch.tensor(0.25))  # Half of (1 - 0.75) / 0.5
        tensor(0.2500)
    """

    strategy: Literal["cap", "rescale", "conf"] = "cap"
    eta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("strategy", self.strategy, tuple(DEFAULT_ETA))
        check_number("eta", self.strength, minimum=0.0, maximum=1.0)

    @property
    def strength(self) -> float:
        """``eta``, or the strategy's default."""
        return DEFAULT_ETA[self.strategy] if self.eta is None else self.eta

    def sigma(self, t: Tensor, s: Tensor) -> Tensor:
        """Remasking probability of the step (what "conf" deals out), elementwise."""
        alpha_t, alpha_s = self.process.visible_probability(t), self.process.visible_probability(s)
        maximum = torch.where(alpha_t > 0.0, (1.0 - alpha_s) / alpha_t, torch.ones_like(alpha_t)).clamp(0.0, 1.0)
        return maximum.clamp(max=self.strength) if self.strategy == "cap" else self.strength * maximum

    def reveal_probability(self, t: Tensor, s: Tensor, sigma: Tensor) -> Tensor:
        """Of a masked position, elementwise; 1 where ``s = 0``."""
        alpha_t = self.process.visible_probability(t)
        extra = sigma * alpha_t / (1.0 - alpha_t).clamp(min=1e-12)
        return (self.process.unmask_probability(t, s) + extra).clamp(0.0, 1.0)

    def fill(self, state: SamplerState, recorder: Recorder) -> None:
        if self.strategy == "conf":
            walk_grid(self, state, partial(self._confident_step, state), recorder)
            return
        revealed, hidden = self._planned_draws(state, self.times)
        positions = planned_positions(revealed)

        def planned_step(step: int, t: Tensor, s: Tensor) -> None:
            state.reveal(positions[step], t, s, step)
            state.mask_again(hidden[step])

        walk_grid(self, state, planned_step, recorder, left=positions[-1])

    def _planned_draws(self, state: SamplerState, times: Sequence[float]) -> tuple[list[Tensor], list[Tensor]]:
        """What each step reveals, with what is left at last, and what it hides: bool ``[B, L]``."""
        ends = torch.tensor(times, device=state.tokens.device)
        masked, revealed, hidden = state.masked(), [], []
        for step, (t, s) in enumerate(pairwise(ends)):
            sigma = self.sigma(t, s)
            probability = self.reveal_probability(t, s, sigma).expand(state.batch)
            revealed.append(state.unmask_draws(step, probability) & masked)
            hidden.append((state.uniform(step, STREAM_REMASK) < sigma) & state.generation_mask & ~masked)
            masked = (masked & ~revealed[-1]) | hidden[-1]
        return [*revealed, masked], hidden

    def _confident_step(self, state: SamplerState, step: int, t: Tensor, s: Tensor) -> None:
        masked = state.masked()
        written = state.generation_mask & ~masked
        doubt_BL = (-state.log_probs.exp()).masked_fill(~written, float("-inf"))
        share_BL = torch.where(written, doubt_BL.softmax(1), 0.0)
        hidden = (state.uniform(step, STREAM_REMASK) < self.sigma(t, s)[:, None] * share_BL) & written
        probability = self.process.unmask_probability(t, s)[:, None]
        state.reveal(state.select((state.uniform(step, STREAM_UNMASK) < probability) & masked), t, s, step)
        state.mask_again(hidden)
