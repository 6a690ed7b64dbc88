"""Samplers: one file each, one signature."""

from .analytic import AnalyticSampler
from .ancestral import AncestralSampler
from .blockwise import BlockwiseSampler, FinishedBlock, in_blocks_of
from .call import Sampler
from .confidence import ConfidenceSampler
from .cuda_graph import CudaGraphSampler
from .entropy_bounded import EntropyBoundedSampler
from .first_hitting import FirstHittingSampler
from .options import GridOptions, SamplerOptions
from .output import SamplerOutput
from .path_planning import PathPlanningSampler
from .prompts import Frame, prompted
from .ratio_score import Candidate, CandidateScorer, TeacherRatio
from .remasking import ReMaskingSampler
from .rga import RGASampler
from .state import SamplerState
from .strided import Stride

__all__ = [
    "AnalyticSampler",
    "AncestralSampler",
    "BlockwiseSampler",
    "Candidate",
    "CandidateScorer",
    "ConfidenceSampler",
    "CudaGraphSampler",
    "EntropyBoundedSampler",
    "FinishedBlock",
    "FirstHittingSampler",
    "Frame",
    "GridOptions",
    "PathPlanningSampler",
    "RGASampler",
    "ReMaskingSampler",
    "Sampler",
    "SamplerOptions",
    "SamplerOutput",
    "SamplerState",
    "Stride",
    "TeacherRatio",
    "in_blocks_of",
    "prompted",
]
