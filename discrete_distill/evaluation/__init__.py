"""Evaluation: perplexity under a named judge, diversity, the frontier of both, speed, and their plots."""

from .accuracy_plot import AccuracyCurve, plot_accuracy
from .between_samples import (
    BetweenSampleDiversity,
    Estimate,
    mean_figures,
    measure_between_samples,
    nearest_overlap,
    ngram_entropy,
    reverse_perplexity,
    sample_agreement,
)
from .bracket import measure_frontier_around
from .collapse import CollapseTolerance, LostDiversity, lost_diversity, of_samples_alone
from .comparison import FrontierComparison, compare_at_entropy
from .diversity import (
    Diversity,
    corpus_entropy,
    distinct_n,
    measure_diversity,
    overlap_n,
    repetition_n,
    sample_entropy,
)
from .encoding import encode_with_judge
from .ending import before_end
from .frontier import (
    Frontier,
    FrontierMean,
    FrontierPoint,
    FrontierReading,
    measure_frontier,
)
from .judges import CausalLMJudge, Judge, TextJudge, TokenNats
from .likelihood import LikelihoodBound, likelihood_bound
from .mauve import Mauve, kmeans, mauve
from .ngram import NGramJudge
from .perplexity import GenerativePerplexity, generative_perplexity
from .plots import StepCurve, plot_frontier, plot_perplexity_by_steps
from .protein import ProteinFigures, measure_proteins
from .self_bleu import self_bleu
from .speed import Speed, SpeedRatio, measure_speeds, speed_ratio
from .text_model import TextModel

__all__ = [
    "AccuracyCurve",
    "BetweenSampleDiversity",
    "CausalLMJudge",
    "CollapseTolerance",
    "Diversity",
    "Estimate",
    "Frontier",
    "FrontierComparison",
    "FrontierMean",
    "FrontierPoint",
    "FrontierReading",
    "GenerativePerplexity",
    "Judge",
    "LikelihoodBound",
    "LostDiversity",
    "Mauve",
    "NGramJudge",
    "ProteinFigures",
    "Speed",
    "SpeedRatio",
    "StepCurve",
    "TextJudge",
    "TextModel",
    "TokenNats",
    "before_end",
    "compare_at_entropy",
    "corpus_entropy",
    "distinct_n",
    "encode_with_judge",
    "generative_perplexity",
    "kmeans",
    "likelihood_bound",
    "lost_diversity",
    "mauve",
    "mean_figures",
    "measure_between_samples",
    "measure_diversity",
    "measure_frontier",
    "measure_frontier_around",
    "measure_proteins",
    "measure_speeds",
    "nearest_overlap",
    "ngram_entropy",
    "of_samples_alone",
    "overlap_n",
    "plot_accuracy",
    "plot_frontier",
    "plot_perplexity_by_steps",
    "repetition_n",
    "reverse_perplexity",
    "sample_agreement",
    "sample_entropy",
    "self_bleu",
    "speed_ratio",
]
