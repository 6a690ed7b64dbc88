"""Exchange of values between the processes of a run. With one process every function returns what it was given."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

from .collectives import mean_over_processes, num_processes

T = TypeVar("T")


def process_index() -> int:
    """Number of this process, its rank."""
    return dist.get_rank() if num_processes() > 1 else 0


def agree(metrics: dict[str, float], stop: bool, device: torch.device) -> tuple[dict[str, float], bool]:
    """Metrics averaged over processes, and whether any of them wants to stop; all must call, with the same names."""
    if num_processes() == 1:
        return metrics, stop
    names = sorted(metrics)
    values = torch.tensor([*(metrics[name] for name in names), float(stop)], dtype=torch.float64).to(device)
    *means, stopping = mean_over_processes(values).tolist()
    return dict(zip(names, means, strict=True)), stopping > 0.0


def check_all_equal(number: int, what: str, remedy: str, device: torch.device) -> None:
    """Refuse to go on where processes disagree."""
    if num_processes() == 1:
        return
    mine = torch.tensor([number], device=device)
    seen = [torch.empty_like(mine) for _ in range(num_processes())]
    dist.all_gather(seen, mine)
    numbers = [int(each) for each in seen]
    if len(set(numbers)) > 1:
        raise ValueError(f"processes see different {what}: {numbers}, in order of rank; {remedy}")


def my_share(items: list[T]) -> list[T]:
    """Every n-th item, from this process's own number on.

    Examples:
        >>> from discrete_distill.training import my_share
        >>> my_share(["a", "b", "c"])  # This is the only process.
        ['a', 'b', 'c']
    """
    return items[process_index() :: num_processes()]


def gather_in_order(share: list[T]) -> list[T]:
    """All items, on every process, in the order that they had before `my_share` dealt them out.

    Examples:
        >>> from discrete_distill.training import gather_in_order, my_share
        >>> gather_in_order([2 * item for item in my_share([1, 2, 3])])  # All, however many processes there are.
        [2, 4, 6]
    """
    if num_processes() == 1:
        return share
    shares: list[list[T]] = [[] for _ in range(num_processes())]
    dist.all_gather_object(shares, share)
    rounds = max(map(len, shares))
    return [items[index] for index in range(rounds) for items in shares if index < len(items)]
