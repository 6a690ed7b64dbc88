"""Shared by all tests: one thread, repeatable hypothesis examples, seeds that no other test moves."""

import os
import sys
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch
from torch import Generator

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests are small; more threads than cores only make them slower, and sums depend on their number."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_seed() -> None:
    """Initial weights and dropout follow PyTorch's own generator, which the tests before would have moved on."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Arguments of a Trainer write variables that later Accelerators obey."""
    before = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE")}
    yield
    for name in [name for name in os.environ if name.startswith("ACCELERATE")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    """Where bf16 is fast, recipes take it, and accelerate keeps the precision of the first Accelerator of a process."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None and state.AcceleratorState._shared_state.get("_mixed_precision", "no") != "no":
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def seeded() -> Callable[[int], Generator]:
    """``seeded(7)``: a CPU generator with that seed."""
    return lambda seed: Generator().manual_seed(seed)
