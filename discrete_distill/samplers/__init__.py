"""Samplers: one file each, one signature."""

from ..canvas import Canvas, time_grid
from .ancestral import AncestralSampler, ancestral_step
from .output import SamplerOutput
from .rga import RGASampler

__all__ = ["AncestralSampler", "Canvas", "RGASampler", "SamplerOutput", "ancestral_step", "time_grid"]
