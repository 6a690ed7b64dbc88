"""Samplers: one file each, one signature."""

from ..canvas import Canvas, time_grid
from .analytic import AnalyticSampler
from .ancestral import AncestralSampler
from .blockwise import BlockwiseSampler
from .confidence import ConfidenceSampler
from .entropy_bounded import EntropyBoundedSampler
from .first_hitting import FirstHittingSampler
from .options import GridOptions, Sampler, SamplerOptions
from .output import SamplerOutput
from .path_planning import PathPlanningSampler
from .prompts import prompted
from .ratio_score import Candidate, CandidateScorer, TeacherRatio
from .remasking import ReMaskingSampler
from .rga import RGASampler
from .static import StaticSampler

__all__ = [
    "AnalyticSampler",
    "AncestralSampler",
    "BlockwiseSampler",
    "Candidate",
    "CandidateScorer",
    "Canvas",
    "ConfidenceSampler",
    "EntropyBoundedSampler",
    "FirstHittingSampler",
    "GridOptions",
    "PathPlanningSampler",
    "RGASampler",
    "ReMaskingSampler",
    "Sampler",
    "SamplerOptions",
    "SamplerOutput",
    "StaticSampler",
    "TeacherRatio",
    "prompted",
    "time_grid",
]
