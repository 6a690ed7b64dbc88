"""Training: the loop, checkpoints, optimisers with moving averages, many processes, seeds, signs of trouble."""

from .checkpoint import CheckpointStore
from .health import explain
from .loop import LoopConfig, TrainingDiverged, TrainingLoop
from .metrics import read_metrics
from .optimization import Learner, OptimizerConfig
from .parallel import ParallelConfig, replicate, shard
from .processes import gather_in_order, my_share
from .seeding import fold_seed, step_generator

__all__ = [
    "CheckpointStore",
    "Learner",
    "LoopConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "TrainingDiverged",
    "TrainingLoop",
    "explain",
    "fold_seed",
    "gather_in_order",
    "my_share",
    "read_metrics",
    "replicate",
    "shard",
    "step_generator",
]
