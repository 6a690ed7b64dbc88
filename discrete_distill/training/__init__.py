"""Training: the loop, checkpoints, optimisers with moving averages, many processes, seeds, signs of trouble."""

from ..distributed.parallel import ParallelConfig, replicate, shard
from ..distributed.processes import gather_in_order, my_share
from .checkpoint import CheckpointStore
from .distillation_step import BatchPart, DistillationStep
from .health import explain
from .lock import FolderInUse, folder_lock
from .loop import LoopConfig, TrainingLoop
from .metrics import TrainingDiverged, read_metrics
from .mode_collapse import CollapseRule, CollapseWatch, ModeCollapse, TrainingCollapsed, mode_collapse
from .optimization import ModuleOptimizer, OptimizerConfig
from .seeding import fold_seed, step_generator
from .stored_settings import flat_settings, refuse_changes
from .trajectory_store import TrajectoryStore

__all__ = [
    "BatchPart",
    "CheckpointStore",
    "CollapseRule",
    "CollapseWatch",
    "DistillationStep",
    "FolderInUse",
    "LoopConfig",
    "ModeCollapse",
    "ModuleOptimizer",
    "OptimizerConfig",
    "ParallelConfig",
    "TrainingCollapsed",
    "TrainingDiverged",
    "TrainingLoop",
    "TrajectoryStore",
    "explain",
    "flat_settings",
    "fold_seed",
    "folder_lock",
    "gather_in_order",
    "mode_collapse",
    "my_share",
    "read_metrics",
    "refuse_changes",
    "replicate",
    "shard",
    "step_generator",
]
