"""The frontier: perplexity as a curve over entropy, to compare methods where they are equally diverse.

A lower sampling temperature buys perplexity with entropy, and a few tenths of a nat are worth a factor of two
or three. One pair of figures is not a comparison; a curve over temperatures, read at the entropy of data, shows which
method is better.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from torch import Tensor

from .between_samples import Estimate, mean_figures, measure_between_samples
from .checks import check_token_ids, exponential
from .diversity import corpus_entropy, sample_entropy
from .judges import Judge
from .perplexity import generative_perplexity


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One set of samples.

    Attributes:
        temperature: of sampling.
        seed: of sampling.
        entropy: mean unigram entropy of a sample, in nats.
        corpus_entropy: unigram entropy of all samples together, in nats; falls when samples grow alike.
        nats_per_token: log of the generative perplexity.
        standard_error: of ``nats_per_token`` over the samples of this point; None for a single sample.
        diversity: `BetweenSampleDiversity.figures`, by name; empty for a single sample.

    Examples:
        >>> frontier = measure_frontier(lambda *_: data, judge, method="data", temperatures=(0.9, 1.0), seeds=(0, 1))
        >>> [(point.temperature, point.seed) for point in frontier.points]
        [(0.9, 0), (0.9, 1), (1.0, 0), (1.0, 1)]
    """

    temperature: float
    seed: int
    entropy: float
    corpus_entropy: float
    nats_per_token: float
    standard_error: float | None
    diversity: dict[str, Estimate] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """``exp(nats_per_token)``."""
        return exponential(self.nats_per_token)


@dataclass(frozen=True, kw_only=True)
class FrontierMean:
    """Means over seeds at one temperature, in nats.

    Standard errors are over seeds (None for one seed); those of `FrontierPoint.diversity` are over samples.

    Examples:
        >>> frontier = measure_frontier(lambda *_: data, judge, method="data", temperatures=(0.9, 1.0), seeds=(0, 1))
        >>> [(mean.temperature, mean.nats_error) for mean in frontier.means()]  # The same samples for both seeds.
        [(0.9, 0.0), (1.0, 0.0)]
    """

    temperature: float
    entropy: float
    entropy_error: float | None
    nats_per_token: float
    nats_error: float | None
    diversity: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class FrontierReading:
    """A frontier read at one entropy.

    Attributes:
        method: whose frontier.
        judge: who priced it.
        entropy: where it was read, in nats.
        seeds: in order.
        nats_by_seed: log-perplexity read from the curve of each seed; None where that curve does not reach.
        diversity: figures of `FrontierPoint.diversity` read at the same entropy, means over seeds; empty out of range.
        note: empty, or why there is no reading and what to do.

    Examples:
        >>> frontier = measure_frontier(lambda *_: data, judge, method="data", temperatures=(1.0,), seeds=(0,))
        >>> frontier.read(5.0).within_range, frontier.read(5.0).note
        (False, 'data: entropy 5.000 is outside of what all seeds reach (...); add higher temperatures')
    """

    method: str
    judge: str
    entropy: float
    seeds: tuple[int, ...]
    nats_by_seed: tuple[float | None, ...]
    diversity: dict[str, Estimate]
    note: str

    @property
    def within_range(self) -> bool:
        """Whether the curves of all seeds reach this entropy."""
        return all(nats is not None for nats in self.nats_by_seed)

    @property
    def nats_per_token(self) -> float | None:
        """Mean over seeds; None unless `within_range`: a frontier is never extended."""
        return statistics.fmean(self._nats()) if self.within_range else None

    @property
    def perplexity(self) -> float | None:
        """``exp(nats_per_token)``, the geometric mean over seeds."""
        return None if self.nats_per_token is None else exponential(self.nats_per_token)

    @property
    def standard_error(self) -> float | None:
        """Of ``nats_per_token`` over seeds: the perplexity's relative error. None for one seed."""
        return standard_error_of_mean(self._nats()) if self.within_range else None

    @property
    def spread(self) -> float | None:
        """Largest less smallest over seeds, in nats."""
        return max(self._nats()) - min(self._nats()) if self.within_range else None

    def _nats(self) -> list[float]:
        return [nats for nats in self.nats_by_seed if nats is not None]


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Points over temperatures and seeds of one method. ``dataclasses.asdict`` of it is fit for JSON.

    Attributes:
        method: what was sampled from, and how.
        judge: name of the judge.
        precision: arithmetic in which the samples were drawn.
        num_samples: samples of each point, N.
        length: tokens of each sample, L; entropies of different lengths are not comparable.
        points: in the order of measurement.

    Examples:
        >>> point = {"seed": 0, "corpus_entropy": 6.0, "standard_error": 0.1}
        >>> cold = FrontierPoint(temperature=0.9, entropy=5.0, nats_per_token=3.0, **point)
        >>> hot = FrontierPoint(temperature=1.1, entropy=5.5, nats_per_token=4.0, **point)
        >>> measured = {"judge": "GPT-2", "precision": "fp32", "num_samples": 64, "length": 1024}
        >>> Frontier(method="student", points=(cold, hot), **measured).read(5.25).nats_per_token  # Half-way.
        3.5
    """

    method: str
    judge: str
    precision: str
    num_samples: int
    length: int
    points: tuple[FrontierPoint, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """In rising order."""
        return tuple(sorted({point.seed for point in self.points}))

    def means(self) -> list[FrontierMean]:
        """Means over seeds, by rising temperature."""
        temperatures = sorted({point.temperature for point in self.points})
        return [_mean_over_seeds([p for p in self.points if p.temperature == t]) for t in temperatures]

    def read(self, entropy: float) -> FrontierReading:
        """Log-perplexity at an entropy: linear in the entropy between neighbouring points, seed by seed.

        Args:
            entropy: in nats; that of data of the same length (`sample_entropy`), as a rule.

        Returns:
            A reading without a value, and with a note, where the entropy lies outside of what was measured.

        Raises:
            ValueError: if ``entropy`` is not finite, or there are no points.
        """
        if not self.points:
            raise ValueError(f"the frontier of {self.method!r} has no points; measure it first")
        if not math.isfinite(entropy):
            raise ValueError(f"a frontier is read at a finite entropy, got {entropy}")
        curves = [[p for p in self.points if p.seed == seed] for seed in self.seeds]
        nats = tuple(
            interpolate([p.entropy for p in curve], [p.nats_per_token for p in curve], entropy) for curve in curves
        )
        return FrontierReading(
            method=self.method,
            judge=self.judge,
            entropy=entropy,
            seeds=self.seeds,
            nats_by_seed=nats,
            diversity={} if None in nats else _diversity_at(curves, entropy),
            note=self._why_out_of_range(curves, entropy) if None in nats else "",
        )

    def _why_out_of_range(self, curves: list[list[FrontierPoint]], entropy: float) -> str:
        low = max(min(p.entropy for p in curve) for curve in curves)
        high = min(max(p.entropy for p in curve) for curve in curves)
        remedy = "higher" if entropy > high else "lower"
        return (
            f"{self.method}: entropy {entropy:.3f} is outside of what all seeds reach "
            f"({low:.3f} to {high:.3f} nats); add {remedy} temperatures"
        )

    def priced_by(
        self, judge: Judge, sample: Callable[[float, int], Tensor], *, mask_token_id: int | None = None
    ) -> Frontier:
        """The same samples under another judge.

        Args:
            judge: who prices them.
            sample: ``sample(temperature, seed) -> [N, L]``, the samples that were measured.
            mask_token_id: with it, samples that still hold masks are refused.
        """
        points = []
        for point in self.points:
            sequences_NL = sample(point.temperature, point.seed)
            _same_shape((self.num_samples, self.length), sequences_NL)
            judged = generative_perplexity(sequences_NL, judge, precision=self.precision, mask_token_id=mask_token_id)
            points.append(replace(point, nats_per_token=judged.nats_per_token, standard_error=judged.standard_error))
        return replace(self, judge=judge.name, points=tuple(points))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Frontier:
        """The inverse of ``dataclasses.asdict``, through JSON or not."""
        points = tuple(_point_from_dict(point) for point in saved["points"])
        return cls(**{**saved, "points": points})

    def to_dict(self) -> dict[str, Any]:
        """``dataclasses.asdict``."""
        return asdict(self)


def measure_frontier(
    sample: Callable[[float, int], Tensor],
    judge: Judge,
    *,
    method: str,
    temperatures: Sequence[float],
    seeds: Sequence[int],
    precision: str = "fp32",
    mask_token_id: int | None = None,
    batch_size: int = 16,
    data: Tensor | None = None,
    groups_N: Tensor | None = None,
    generation_mask_NL: Tensor | None = None,
) -> Frontier:
    """Sample and judge at every temperature with every seed.

    Args:
        sample: ``sample(temperature, seed) -> [N, L]`` token ids, the same N and L at every call.
        judge: who prices them.
        method: name for the curve.
        temperatures: of sampling, all different.
        seeds: of sampling, all different; three or more for a usable standard error.
        precision: arithmetic in which samples are drawn; recorded.
        mask_token_id: with it, samples that still hold masks are refused.
        batch_size: samples the judge sees at once.
        data: held-out data, int64 ``[M, L']``, for the reverse perplexity of each point; None to leave it out.
        groups_N: int ``[N]``, number of the prompt of each sample, where samples continue prompts: only samples of one
            prompt are compared with one another.
        generation_mask_NL: bool ``[N, L]``, true at generated tokens; all by default.

    Raises:
        TypeError: if samples are no integers.
        ValueError: without temperatures or seeds, with one given twice, with a temperature that is not positive, or if
            N or L varies.

    Examples:
        >>> def sample(temperature, seed):
        ...     sampler = AncestralSampler(process, num_steps=4, temperature=temperature)
        ...     return sampler(student, shape=(8, 16), generator=torch.Generator().manual_seed(seed)).sequences
        >>> frontier = measure_frontier(sample, judge, method="4 steps", temperatures=(0.9, 1.0), seeds=(0, 1, 2))
        >>> frontier.read(float(sample_entropy(data).mean())).method
        '4 steps'
    """
    for name, values in (("temperatures", temperatures), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be one or more different values, got {list(values)}")
    if not all(0.0 < temperature < math.inf for temperature in temperatures):
        raise ValueError(f"temperatures must be positive and finite, got {list(temperatures)}")
    points: list[FrontierPoint] = []
    shape: tuple[int, int] | None = None
    for temperature, seed in product(temperatures, seeds):
        sequences_NL = sample(temperature, seed)
        check_token_ids(sequences_NL)
        shape = _same_shape(shape, sequences_NL)
        judged = generative_perplexity(
            sequences_NL, judge, precision=precision, mask_token_id=mask_token_id, batch_size=batch_size
        )
        diversity: dict[str, Estimate] = {}
        if len(sequences_NL) > 1:
            diversity = measure_between_samples(
                sequences_NL, data, groups_N=groups_N, generation_mask_NL=generation_mask_NL
            ).figures()
        points.append(
            FrontierPoint(
                temperature=float(temperature),
                seed=int(seed),
                entropy=float(sample_entropy(sequences_NL).mean()),
                corpus_entropy=corpus_entropy(sequences_NL),
                nats_per_token=judged.nats_per_token,
                standard_error=judged.standard_error,
                diversity=diversity,
            )
        )
    assert shape is not None
    return Frontier(
        method=method,
        judge=judge.name,
        precision=precision,
        num_samples=shape[0],
        length=shape[1],
        points=tuple(points),
    )


def _same_shape(shape: tuple[int, int] | None, sequences_NL: Tensor) -> tuple[int, int]:
    num_samples, length = sequences_NL.shape
    if shape is not None and shape != (num_samples, length):
        raise ValueError(
            f"points of a frontier need samples of one number and length, got {shape} and {(num_samples, length)}"
        )
    return num_samples, length


def _point_from_dict(saved: Mapping[str, Any]) -> FrontierPoint:
    diversity = {name: Estimate(*estimate) for name, estimate in saved.get("diversity", {}).items()}
    return FrontierPoint(**{**saved, "diversity": diversity})


def _diversity_at(curves: list[list[FrontierPoint]], entropy: float) -> dict[str, Estimate]:
    """Figures at an entropy, interpolated seed by seed; errors are those of samples, averaged over seeds."""
    shared = set.intersection(*(set(point.diversity) for curve in curves for point in curve))
    found = {}
    for name in sorted(shared):
        values, errors = [], []
        for curve in curves:
            entropies, estimates = [p.entropy for p in curve], [p.diversity[name] for p in curve]
            values.append(interpolate(entropies, [each.value for each in estimates], entropy))
            errors.append(interpolate(entropies, [each.standard_error or 0.0 for each in estimates], entropy))
        error = math.sqrt(math.fsum((each or 0.0) ** 2 for each in errors)) / len(errors)
        found[name] = Estimate(statistics.fmean(value for value in values if value is not None), error)
    return found


def interpolate(xs: Iterable[float], ys: Iterable[float], x: float) -> float | None:
    """Piecewise linear through the points by rising ``xs``, equal ones averaged; None outside."""
    grouped: dict[float, list[float]] = {}
    for xi, yi in zip(xs, ys, strict=True):
        grouped.setdefault(xi, []).append(yi)
    knots = sorted(grouped)
    if not knots or not knots[0] <= x <= knots[-1]:
        return None
    right = bisect_left(knots, x)
    upper = statistics.fmean(grouped[knots[right]])
    if knots[right] == x:
        return upper
    lower = statistics.fmean(grouped[knots[right - 1]])
    fraction = (x - knots[right - 1]) / (knots[right] - knots[right - 1])
    return (1.0 - fraction) * lower + fraction * upper


def standard_error_of_mean(values: Sequence[float]) -> float | None:
    """``s / sqrt(n)`` with the ``n - 1`` standard deviation; None for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _mean_over_seeds(points: list[FrontierPoint]) -> FrontierMean:
    entropies, nats = [p.entropy for p in points], [p.nats_per_token for p in points]
    return FrontierMean(
        temperature=points[0].temperature,
        entropy=statistics.fmean(entropies),
        entropy_error=standard_error_of_mean(entropies),
        nats_per_token=statistics.fmean(nats),
        nats_error=standard_error_of_mean(nats),
        diversity=mean_figures([p.diversity for p in points]),
    )
