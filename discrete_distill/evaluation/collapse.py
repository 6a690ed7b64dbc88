"""Mode collapse: samples that resemble one another more than those of a reference, by more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .between_samples import Estimate


@dataclass(frozen=True, kw_only=True)
class CollapseTolerance:
    """How far samples may fall behind a reference before they count as collapsed.

    A figure counts where the difference exceeds its tolerance *and* ``errors`` standard errors of the difference. The
    defaults leave room for sampling at a temperature of 0.9: on the text that this library carries, the teacher's
    agreement rises by a factor of 1.4 there. Entropies of n-grams are not among the figures: they fall with the
    temperature, by an amount that depends on the language.

    Args:
        agreement_factor: of `sample_agreement` over that of the reference.
        nearest_overlap: rise of `nearest_overlap`, a fraction.
        reverse_nats: rise of the log of `reverse_perplexity`, in nats per token.
        errors: standard errors.

    Raises:
        ValueError: for a factor below 1, or another figure that is negative or not finite.

    Examples:
        >>> figures, reference = {"agreement": Estimate(0.5, 0.01)}, {"agreement": Estimate(0.2, 0.01)}
        >>> lost_diversity(figures, reference, CollapseTolerance(agreement_factor=3.0))
        ()
        >>> [lost.name for lost in lost_diversity(figures, reference, CollapseTolerance(agreement_factor=2.0))]
        ['agreement']
    """

    agreement_factor: float = 2.0
    nearest_overlap: float = 0.1
    reverse_nats: float = 0.1
    errors: float = 3.0

    def __post_init__(self) -> None:
        if not 1.0 <= self.agreement_factor < math.inf:
            raise ValueError(f"agreement_factor must be 1 or more, got {self.agreement_factor}")
        for name in ("nearest_overlap", "reverse_nats", "errors"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def loss_allowed(self, name: str, reference: float) -> float:
        """By how much a figure may be worse than the ``reference`` value, in the figure's own unit."""
        allowed = {
            "agreement": (self.agreement_factor - 1.0) * reference,
            "nearest_overlap": self.nearest_overlap,
            "reverse_nats": self.reverse_nats,
        }
        return allowed[name]


@dataclass(frozen=True, kw_only=True)
class LostDiversity:
    """A figure by which samples are less diverse than a reference.

    Attributes:
        name: of the figure, as in `BetweenSampleDiversity.figures`.
        value: of the samples.
        reference: of the reference.

    Examples:
        >>> lost = lost_diversity({"agreement": Estimate(0.5, 0.01)}, {"agreement": Estimate(0.2, 0.01)})
        >>> print(lost[0])
        agreement of two samples 50% (reference 20%)
    """

    name: str
    value: float
    reference: float

    def __str__(self) -> str:
        value, reference = (_shown(self.name, each) for each in (self.value, self.reference))
        return f"{DESCRIPTIONS[self.name]} {value} (reference {reference})"


DESCRIPTIONS = {
    "agreement": "agreement of two samples",
    "nearest_overlap": "4-grams shared with the nearest sample",
    "reverse_nats": "reverse perplexity",
}


def lost_diversity(
    figures: Mapping[str, Estimate],
    reference: Mapping[str, Estimate],
    tolerance: CollapseTolerance | None = None,
) -> tuple[LostDiversity, ...]:
    """Find the figures by which samples are less diverse than a reference; empty for healthy samples.

    Args:
        figures: `BetweenSampleDiversity.figures` of the samples.
        reference: the same of data, or of a teacher at many steps, for as many samples of the same length.
        tolerance: `CollapseTolerance` by default.

    Examples:
        >>> alike = data[:1].repeat(8, 1)
        >>> lost = lost_diversity(measure_between_samples(alike).figures(), measure_between_samples(data).figures())
        >>> [each.name for each in lost]
        ['agreement', 'nearest_overlap']
    """
    tolerance = CollapseTolerance() if tolerance is None else tolerance
    found = []
    for name in DESCRIPTIONS:
        if name not in figures or name not in reference:
            continue
        (value, error), (reference_value, reference_error) = figures[name], reference[name]
        loss = value - reference_value
        noise = math.hypot(error or 0.0, reference_error or 0.0)
        if loss > tolerance.loss_allowed(name, reference_value) and loss > tolerance.errors * noise:
            found.append(LostDiversity(name=name, value=value, reference=reference_value))
    return tuple(found)


def of_samples_alone(figures: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Select the figures that samples and data are compared by: all but the reverse perplexity, which bad text raises.

    Args:
        figures: `BetweenSampleDiversity.figures`, of data or of samples.

    Examples:
        >>> figures = measure_between_samples(data, data).figures()
        >>> sorted(set(figures) - set(of_samples_alone(figures)))
        ['reverse_nats']
    """
    return {name: figure for name, figure in figures.items() if name != "reverse_nats"}


def _shown(name: str, value: float) -> str:
    return f"{math.exp(value):.0f}" if name == "reverse_nats" else f"{100 * value:.3g}%"
