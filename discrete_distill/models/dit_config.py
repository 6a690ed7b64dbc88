"""Configuration of the diffusion transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import check_count, check_flag, check_number
from ..process import (
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    MaskingSchedule,
    PolynomialSchedule,
)
from .io.weights import CheckpointError

MAX_SIGMA = 20.0
SCHEDULES: dict[str, MaskingSchedule] = {
    "log_linear": LogLinearSchedule(),
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "polynomial": PolynomialSchedule(),
    "geometric": GeometricSchedule(),
}


@dataclass(kw_only=True, frozen=True)
class DiTConfig:
    """Shape of the network.

    Args:
        vocab_size: classes, mask included.
        max_length: longest sequence it is meant for, in tokens; longer ones are refused.
        hidden_size: width (paper: 768).
        num_layers: blocks (paper: 12).
        num_heads: attention heads (paper: 12).
        cond_size: width of the conditioning vector (paper: 128).
        dropout: probability inside blocks during training (paper: 0.1).
        time_conditioning: feed ``sigma(t)`` to the network; MDLM does not, and feeds zero.
        schedule: whose ``sigma`` that is: the schedule of the process that the network is trained with, so that it is
            passed how much is masked. MDLM's, log-linear with ``eps`` of 1e-3, by default; else "linear", "cosine",
            "polynomial" or "geometric", with their own defaults. Infinite noise is passed as 20 nats.
        step_conditioning: also pass the step ``(t, s)``, through an embedding that starts at zero.
        block_length: positions in a block of a block-diffusion network (BD3-LM, arXiv 2503.09573), in which a token
            reads its own block and all earlier ones; blocks are counted from the first real token of a row. None:
            every token reads every other.
        position_bias: in the place of rotary positions, add a learned bias ``[num_heads, max_length, max_length]`` to
            the attention scores of each block, one for each pair of positions, and a learned embedding to the tokens of
            each position, without which a sequence of masks has one prediction everywhere; both start at zero. For
            sequences whose positions are no line, such as the cells of a grid; nothing longer than ``max_length`` is
            generated.
        bf16_blocks: run the blocks and the head under bf16 autocast, as MDLM does; weights, the residual stream and the
            conditioning stay in their own precision. Off by default: the caller's autocast decides.

    Raises:
        ValueError: if the width is not a multiple of twice the number of heads, a size is not positive, the dropout is
            no probability below 1, the schedule is unknown, or a network with blocks is to be passed its time.
        TypeError: if a size is no whole number, or a switch is neither true nor false.

    Examples:
        >>> size = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "cond_size": 8}
        >>> config = DiTConfig(vocab_size=9, max_length=16, step_conditioning=True, **size)
        >>> DiT(config).accepts_step
        True
    """

    vocab_size: int
    max_length: int = 1024
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    cond_size: int = 128
    dropout: float = 0.1
    time_conditioning: bool = False
    schedule: str = "log_linear"
    step_conditioning: bool = False
    block_length: int | None = None
    position_bias: bool = False
    bf16_blocks: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "hidden_size", "num_layers", "num_heads", "cond_size"):
            check_count(name, getattr(self, name))
        if self.block_length is not None:
            check_count("block_length", self.block_length)
        for name in ("time_conditioning", "step_conditioning", "position_bias", "bf16_blocks"):
            check_flag(name, getattr(self, name))
        check_number("dropout", self.dropout, minimum=0.0, exclusive_maximum=1.0)
        if self.block_length is not None and (self.time_conditioning or self.step_conditioning):
            raise ValueError(
                f"block_length = {self.block_length} keeps the keys of finished blocks, which must not depend on the "
                "time of later ones: leave out time_conditioning and step_conditioning"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 2 * num_heads = {2 * self.num_heads}, "
                "so that a head splits into rotary pairs"
            )


def config_from(fields: Any) -> DiTConfig:
    """A configuration as read from a file."""
    try:
        return DiTConfig(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the config file describes no network: {error}") from error
