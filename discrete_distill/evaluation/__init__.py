"""Evaluation: perplexity under a named judge, diversity, the frontier of both, speed, and their plots."""

from .diversity import (
    Diversity,
    corpus_entropy,
    distinct_n,
    measure_diversity,
    overlap_n,
    repetition_n,
    sample_entropy,
)
from .ending import before_end
from .frontier import (
    Frontier,
    FrontierComparison,
    FrontierMean,
    FrontierPoint,
    FrontierReading,
    compare_at_entropy,
    measure_frontier,
)
from .judges import CausalLMJudge, Judge, TextJudge, TokenNats
from .perplexity import GenerativePerplexity, generative_perplexity
from .plots import StepCurve, plot_frontier, plot_perplexity_by_steps
from .speed import Speed, SpeedRatio, measure_speed, measure_speeds, speed_ratio

__all__ = [
    "CausalLMJudge",
    "Diversity",
    "Frontier",
    "FrontierComparison",
    "FrontierMean",
    "FrontierPoint",
    "FrontierReading",
    "GenerativePerplexity",
    "Judge",
    "Speed",
    "SpeedRatio",
    "StepCurve",
    "TextJudge",
    "TokenNats",
    "before_end",
    "compare_at_entropy",
    "corpus_entropy",
    "distinct_n",
    "generative_perplexity",
    "measure_diversity",
    "measure_frontier",
    "measure_speed",
    "measure_speeds",
    "overlap_n",
    "plot_frontier",
    "plot_perplexity_by_steps",
    "repetition_n",
    "sample_entropy",
    "speed_ratio",
]
