"""Faults of a call: positions without a token to draw, and scores that choose nothing.

They are noted on the device, and named when the sampler has ended, so that no step waits for the device.

Shape suffixes: B batch, L length, n positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .filtering import TokenDistribution


@dataclass(frozen=True)
class Faults:
    """Faults that were noted so far.

    Attributes:
        positions: bool ``[B, L]``, true where there was no token to draw.
        scores: bool ``[B]``, true at sequences whose scores, by a discriminator, a reward or a planner, chose nothing.
    """

    positions: Tensor
    scores: Tensor

    def of(self, sequences: Tensor) -> Faults:
        """Those of some sequences, int64 ``[b]``."""
        return Faults(self.positions[sequences], self.scores[sequences])

    def with_positions(self, bad_BL: Tensor) -> Faults:
        """Add positions, bool ``[B, L]``."""
        return replace(self, positions=self.positions | bad_BL)

    def with_scores(self, bad_B: Tensor) -> Faults:
        """Add sequences, bool ``[B]``."""
        return replace(self, scores=self.scores | bad_B)

    def raise_positions(self, first_row: int) -> None:
        """Raise ValueError at the first bad position; the number of the first sequence is ``first_row``."""
        if bool(self.positions.any()):
            sequence, position = self.positions.nonzero()[0].tolist()
            raise ValueError(
                f"sequence {sequence + first_row}, position {position}: logits of the denoiser were NaN, +inf or all "
                "-inf there (the mask's own aside), so there was no token to draw; check=True names the step and the "
                "reason"
            )

    def raise_scores(self, first_row: int, when: str = "") -> None:
        """Raise ValueError at the first sequence with bad scores; ``when`` precedes its name."""
        if bool(self.scores.any()):
            sequence = int(self.scores.nonzero()[0, 0]) + first_row
            raise ValueError(
                f"{when}sequence {sequence}: scores of the discriminator, the reward or the planner were NaN or +inf, "
                "or -inf for all candidates, so they choose nothing"
            )


def check_logits(
    distribution: TokenDistribution,
    logits_nV: Tensor,
    positions: Tensor,
    length: int,
    step: int,
    active: Tensor | None,
) -> None:
    """Raise ValueError if there is a row of logits without a token to draw; waits for the device.

    Args:
        distribution: that tokens are drawn from.
        logits_nV: of a chunk.
        positions: numbers of its positions in the whole batch, int64 ``[n]``.
        length: of a sequence.
        step: number of the step.
        active: bool ``[n]``, false at padding; None where there is none.
    """
    for reason, bad in distribution.undrawable(logits_nV).items():
        bad = bad if active is None else bad & active
        if bool(bad.any()):
            sequence, position = divmod(int(positions[bad.nonzero()[0, 0]]), length)
            raise ValueError(
                f"step {step}, sequence {sequence}, position {position}: logits of the denoiser {reason} "
                "(the mask's own aside), so there is no token to draw"
            )
