"""A CUDA device that is not there: a tensor that says ``cuda:0`` and holds its values on the CPU.

With it the CUDA paths of the library run on any machine. An operation that mixes devices, or a generator of another
device, raises as it would on a GPU; whatever would make the host wait for the device is counted, by place. Not seen:
what kernels compute, streams, captured graphs, processes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
COPIES = ("_to_copy", "copy_", "lift_fresh", "lift_fresh_copy", "set_")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
WAITING = (
    "_local_scalar_dense", "item", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select",
    "is_nonzero", "equal",
)  # fmt: skip
HOST_ANSWERS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "is_same_size")

waits: Counter[tuple[str, str]] = Counter()
"""How often the host waited for the device: by operation and by place in the library."""


class DeviceMismatch(RuntimeError):
    """An operation that a GPU would refuse."""


class PretendedCuda(Tensor):
    """Says that it is on ``cuda:0``. C++ sees a CPU tensor, so that autograd asks for no CUDA stream."""

    inner: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendedCuda:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device="cpu",
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"PretendedCuda({self.inner!r})"

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a cuda:0 tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class PretendedGenerator(torch.Generator):
    """A CPU generator that says which device it is for."""

    def __new__(cls, device: Any = "cpu") -> PretendedGenerator:
        made = super().__new__(cls, "cpu")
        made.place = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return CUDA if self.place.type == "cuda" else self.place


def place_in_library() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/discrete_distill/" in name and "/tests/" not in name:
            return f"{name.rpartition('/discrete_distill/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def wait(what: str) -> None:
    waits[what, place_in_library()] += 1


def is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU values, after the checks that a GPU would make."""
    name = func._schema.name.split("::")[1]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, PretendedCuda)]
    # Attention over an empty batch makes an empty tensor in C++, on what it takes for the device.
    here = [each for each in tensors if not isinstance(each, PretendedCuda) and each.dim() > 0 and each.numel() > 0]
    device = kwargs.get("device")
    in_autograd = torch._C._current_autograd_node() is not None  # it makes zeros on what it takes for the device
    if there and here and name not in COPIES and not in_autograd:
        raise DeviceMismatch(f"{name} of {[(tuple(tensor.shape), tensor.device.type) for tensor in tensors]}")
    if there:
        count_waits(name, args, device)
    if name == "copy_":
        on_cuda = isinstance(args[0], PretendedCuda)
    elif name == "_to_copy" and device is not None:
        on_cuda = is_cuda(device)
    else:
        on_cuda = bool(there) or is_cuda(device)
    arguments, options = tree_map(to_inner, args), tree_map(to_inner, kwargs)
    if name == "_to_copy":
        options.pop("non_blocking", None)
    if options.get("pin_memory"):
        options["pin_memory"] = False
    out = func(*arguments, **options)
    if name in HOST_ANSWERS:
        return out
    outer = {id(tensor.inner): tensor for tensor in there}

    def to_outer(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, PretendedCuda):
            return value
        return outer.get(id(value), PretendedCuda(value) if on_cuda else value)

    return tree_map(to_outer, out)


def count_waits(name: str, args: tuple[Any, ...], device: Any) -> None:
    if name in WAITING:
        wait(name)
    if name in INDEXING and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]):
        wait("index by booleans")
    if name == "_to_copy" and isinstance(args[0], PretendedCuda) and device is not None and not is_cuda(device):
        wait("copy to the host")
    if name == "copy_" and not isinstance(args[0], PretendedCuda):
        wait("copy to the host")


def to_inner(value: Any) -> Any:
    if isinstance(value, PretendedCuda):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


class Factories(TorchDispatchMode):
    """Sees what has no tensor argument too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class Calls(TorchFunctionMode):
    """Sees what C++ would decide by the device that it takes the tensor to be on: generators, moves, autocast."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        check_generator(func, args, kwargs)
        if args and isinstance(args[0], PretendedCuda):
            if func is Tensor.new_tensor:
                return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype), device=CUDA)
            if func in (Tensor.cpu, Tensor.to):
                return moved(func, args, kwargs)
        return func(*args, **kwargs)


def check_generator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    generator = kwargs.get("generator")
    if generator is None:
        return
    device = kwargs.get("device")
    if device is None:
        device = next((leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor)), "cpu")
    if torch.device(device).type != generator.device.type:
        raise DeviceMismatch(f"{func.__name__} on {device} with a generator of {generator.device}")


def moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`Tensor.to` and `Tensor.cpu`: C++ would see no need to move."""
    others = (*args[1:], *kwargs.values())
    dtype = next((each.dtype if isinstance(each, Tensor) else each for each in others
                  if isinstance(each, (torch.dtype, Tensor))), None)  # fmt: skip
    targets = [each.device if isinstance(each, Tensor) else torch.device(each) for each in others
               if isinstance(each, (str, torch.device, Tensor))]  # fmt: skip
    if func is Tensor.cpu or any(target.type == "cpu" for target in targets):
        wait("copy to the host")
        inner = args[0].detach().inner.clone()
        return inner if dtype is None else inner.to(dtype)
    return args[0] if dtype is None else func(args[0], dtype)


def to_cuda(module: nn.Module) -> nn.Module:
    """Parameters and buffers as pretended ones, in place."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None and not isinstance(parameter.data, PretendedCuda):
                there = PretendedCuda(parameter.detach().clone())
                each._parameters[name] = nn.Parameter(there, requires_grad=parameter.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None and not isinstance(buffer, PretendedCuda):
                each._buffers[name] = PretendedCuda(buffer)
    return module


def grouped(module: Any) -> Callable[..., Any]:
    """The groups of tensors that clipping makes in C++, under the device that they say they are on."""
    original = module._group_tensors_by_device_and_dtype

    def group(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        groups = original(tensors, *args, **kwargs)
        return {(value[0][0][0].device, dtype): value for (_, dtype), value in groups.items()}

    return group


def module_to(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`Module.to`, which would swap the data of parameters in C++."""

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        for each in (*args, *kwargs.values()):
            if isinstance(each, PretendedCuda) or (isinstance(each, (str, torch.device)) and is_cuda(each)):
                return to_cuda(self)
        return original(self, *args, **kwargs)

    return to


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """Inside, ``device="cuda"`` works; the kernels' torch backend stands for Triton's."""
    if hasattr(torch._C, "_ensureCUDADeviceGuardSet"):  # PyTorch 2.6 has none and needs none.
        torch._C._ensureCUDADeviceGuardSet()
    replaced: list[Any] = [
        mock.patch.object(torch.cuda, "_lazy_init", return_value=None),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(torch.cuda, "synchronize", return_value=None),
        mock.patch.object(torch.cuda, "current_device", return_value=0),
        mock.patch.object(torch.cuda, "device_count", return_value=1),
        mock.patch.object(clip_grad, "_group_tensors_by_device_and_dtype", grouped(clip_grad)),
        mock.patch.object(nn.Module, "to", module_to(nn.Module.to)),
        mock.patch.dict("os.environ", {"DISCRETE_DISTILL_BACKEND": "torch"}),
    ]
    replaced += [
        mock.patch.object(module, "Generator", PretendedGenerator)
        for name, module in list(sys.modules.items())
        if name.startswith("discrete_distill") and hasattr(module, "Generator")
    ]
    waits.clear()
    for each in replaced:
        each.start()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Factories(), Calls():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        for each in reversed(replaced):
            each.stop()
