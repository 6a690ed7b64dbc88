"""Training: the loop, checkpoints, optimisers with moving averages, seeds."""

from .checkpoint import CheckpointStore
from .loop import LoopConfig, TrainingDiverged, TrainingLoop, read_metrics
from .optimization import Learner, OptimizerConfig
from .seeding import fold_seed, step_generator

__all__ = [
    "CheckpointStore",
    "Learner",
    "LoopConfig",
    "OptimizerConfig",
    "TrainingDiverged",
    "TrainingLoop",
    "fold_seed",
    "read_metrics",
    "step_generator",
]
