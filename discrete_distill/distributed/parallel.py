"""One network on many processes: replicated (DDP) or sharded (FSDP2); and what trades time for memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ..process import FeatureDenoiser
from .collectives import num_processes

Strategy = Literal["ddp", "fsdp"]
CACHES = ("past_key_values", "past_key_value", "layer_past")
ENTRANCES = ("features", "paired_features", "project", "projection", "hidden_states", "embed", "embedding_weight")


@dataclass(kw_only=True)
class ParallelConfig:
    """How networks lie on the processes that ``torchrun`` started, and what saves memory.

    Args:
        strategy: "ddp", every process holds every network; or "fsdp", each holds a share of every weight, gradient and
            optimiser state (FSDP2), and gathers a block's weights when it runs it; not under PyTorch 2.6.
        activation_checkpointing: keep the input of each block alone, and run the block again in the backward pass.
        compile_backend: of ``torch.compile``, which each block goes through ("inductor"); empty for none.

    Examples:
        >>> from accelerate import Accelerator
        >>> from discrete_distill.training import ModuleOptimizer, OptimizerConfig, ParallelConfig
        >>> parallel = ParallelConfig(activation_checkpointing=True)
        >>> optimizer = ModuleOptimizer(student, OptimizerConfig(), 100, Accelerator(cpu=True), parallel)
        >>> student.checkpoint_blocks
        True
    """

    strategy: Strategy = "ddp"
    activation_checkpointing: bool = False
    compile_backend: str = ""

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"strategy is one of {get_args(Strategy)}, got {self.strategy!r}")
        known = torch.compiler.list_backends(exclude_tags=()) if self.compile_backend else []
        if self.compile_backend and self.compile_backend not in known:
            raise ValueError(f"compile_backend is one of {known}, or empty, got {self.compile_backend!r}")


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a network: of its longest `ModuleList` outside of others (as of experts)."""
    found = {name: module for name, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    lists = [
        list(module)
        for name, module in found.items()
        if not any(name.startswith(f"{outer}." if outer else "") for outer in found if outer != name)
    ]
    if not lists:
        raise ValueError(f"{type(network).__name__} has no ModuleList of blocks to compile, checkpoint or shard by")
    return max(lists, key=len)


def save_memory(network: nn.Module, config: ParallelConfig) -> None:
    """Compile the blocks in place, and have their activations computed twice, as configured. Names do not change."""
    if config.activation_checkpointing:
        denoisers = [module for module in network.modules() if hasattr(module, "checkpoint_blocks")]
        for denoiser in denoisers:
            denoiser.checkpoint_blocks = True  # type: ignore[assignment]
        for block in () if denoisers else blocks_of(network):
            vars(block)["forward"] = _RunAgain(block)
    if config.compile_backend:
        for block in blocks_of(network):
            block.compile(backend=config.compile_backend)


class _RunAgain:
    """The forward of a block that keeps its inputs alone where gradients are taken; copied with the block."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward: Callable[..., Any] = partial(type(self.block).forward, self.block)
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # The second run would append to a cache of keys and values once more.
        without_cache: dict[str, Any] = {name: None if name in CACHES else value for name, value in kwargs.items()}
        return checkpoint(forward, *args, use_reentrant=False, **without_cache)


def can_shard() -> bool:
    """Whether the FSDP2 of this PyTorch trains the networks of this library: that of 2.6 runs on GPUs alone, and
    changes gathered weights between two calls of a network whose backward passes need them."""
    return bool(torch.__version__ >= "2.7")


def shard(network: nn.Module, device: torch.device, mixed_precision: str | None = None) -> None:
    """Shard a network by FSDP2 in place: one group of weights for each block, one for the rest.

    All processes must then call the network equally often.

    Args:
        network: with equal weights on every process.
        device: of this process.
        mixed_precision: "bf16" gathers the blocks' weights in bf16 and reduces their gradients in fp32.

    Raises:
        ValueError: under PyTorch 2.6, see `can_shard`.
    """
    if not can_shard():
        raise ValueError(f"PyTorch {torch.__version__} cannot shard these networks; upgrade it, or take strategy 'ddp'")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (num_processes(),))
    half = torch.bfloat16 if mixed_precision == "bf16" else None
    # Times are fp32 and stay so: inputs are not cast.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks_of(network):
        fully_shard(block, mesh=mesh, mp_policy=policy if half else MixedPrecisionPolicy())
    fully_shard(network, mesh=mesh)
    for name in ENTRANCES:
        if callable(getattr(network, name, None)):
            register_fsdp_forward_method(network, name)


class _Door(nn.Module):
    """A network whose methods are reached through `forward`, the only entrance that DDP watches."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, entrance: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.network, entrance)(*args, **kwargs)


class Replicated(nn.Module):
    """A network under DDP that is called as it was before; see `replicate`."""

    def __init__(self, network: nn.Module, device: torch.device, unused_weights: bool = False) -> None:
        super().__init__()
        places = [device.index if device.index is not None else 0] if device.type == "cuda" else None
        # Buffers are not sent around: processes may call a network unequally often (paths differ in length).
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        keep: dict[str, Any] = {name: False, "find_unused_parameters": unused_weights}
        self.door = DistributedDataParallel(_Door(network), device_ids=places, **keep)

    @property
    def accepts_step(self) -> bool:
        """Whether the network is passed the end of its step."""
        return getattr(self.door.module.network, "accepts_step", False)

    def no_sync(self) -> AbstractContextManager[None]:
        """Of DDP, and found by accelerate's ``accumulate``."""
        return self.door.no_sync()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.door("__call__", *args, **kwargs)


class ReplicatedDenoiser(Replicated):
    """A `FeatureDenoiser` under DDP: its head still runs on the rows that are used alone."""

    def features(self, *args: Any, **kwargs: Any) -> Tensor:
        """See `FeatureDenoiser`."""
        return self.door("features", *args, **kwargs)

    def project(self, features: Tensor) -> Tensor:
        """See `FeatureDenoiser`."""
        return self.door("project", features)

    @property
    def block_length(self) -> int | None:
        """See `PairedDenoiser`."""
        return getattr(self.door.module.network, "block_length", None)

    def paired_features(self, *args: Any, **kwargs: Any) -> Tensor:
        """See `PairedDenoiser`."""
        return self.door("paired_features", *args, **kwargs)


def replicate(network: nn.Module, device: torch.device, *, unused_weights: bool = False) -> Replicated:
    """The network under DDP.

    A bare DDP has neither ``features`` nor ``accepts_step``: a denoiser in it would be run in
    full, and no longer be passed its step.

    Args:
        network: with equal weights on every process.
        device: of this process.
        unused_weights: some trained weights have no gradient; DDP then looks for them in every graph.
    """
    kind = ReplicatedDenoiser if isinstance(network, FeatureDenoiser) else Replicated
    return kind(network, device, unused_weights)


def unreplicated(network: nn.Module) -> nn.Module:
    """The network that `replicate` put under DDP; any other as it is."""
    return network.door.module.network if isinstance(network, Replicated) else network


@contextmanager
def without_sync(network: nn.Module) -> Iterator[None]:
    """Inside, gradients add up on each process alone: for all micro-batches of an update but the last."""
    if isinstance(network, Replicated):
        with network.no_sync():
            yield
    elif isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(False)
        yield
        network.set_requires_gradient_sync(True)
    else:
        yield


def gathered(tree: Any, *, keep: bool = True) -> Any:
    """The same nest of containers with whole tensors on the CPU in place of sharded ones. A collective: all processes
    must call it; one that does not ``keep`` gets None in their places."""
    if isinstance(tree, DTensor):
        whole = tree.full_tensor()
        return whole.cpu() if keep else None
    if isinstance(tree, dict):
        return {key: gathered(value, keep=keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(gathered(value, keep=keep) for value in tree)
    return tree


def sharded_like(whole: Any, model: Any) -> Any:
    """``whole`` cut up as ``model`` is, where that is a sharded tensor."""
    if isinstance(model, DTensor) and isinstance(whole, Tensor) and whole.shape == model.shape:
        return distribute_tensor(whole.to(model.device), model.device_mesh, model.placements)
    return whole
