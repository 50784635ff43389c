"""Checks of arguments; every error begins with the argument's name and says what was expected and what was found."""

import math
import numbers

import torch

from onepass import _library

DEVICE_TYPE = "cuda"  # the tests of the Python layer, which know a library for it, set another
DTYPES = {torch.float16: _library.FLOAT16, torch.bfloat16: _library.BFLOAT16, torch.float32: _library.FLOAT32}
INT_MAX = (1 << 31) - 1
FARTHEST = 1 << 30  # a window that reaches every key there can be; positions may be added to it


def refuse(name: str, value, why: str) -> None:
    if value is not None:
        raise NotImplementedError(f"{name}: {why}")


def refuse_gradients(names: tuple, tensors: tuple) -> None:
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is not None and tensor.requires_grad:
            raise NotImplementedError(
                f"{name}: requires_grad: there is no backward pass; call under torch.no_grad() or detach it"
            )


def expect_int(name: str, value, low: float = 0, high: float = INT_MAX) -> int:
    """What the library takes: ctypes wraps silently. A tensor is refused, as reading it would wait for the GPU."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, found {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, found {value}")
    return int(value)


def expect_number(name: str, value) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}")
    return float(value)


def expect_pair(window_size) -> tuple:
    try:
        pair = tuple(window_size)
    except TypeError:
        pair = ()
    if len(pair) != 2:
        raise ValueError(f"window_size: expected (left, right), found {window_size}")
    return pair


def expect_window(window_size) -> tuple[int, int]:
    """As the library takes them: -1 is no limit, as all below are."""
    sides = (expect_int("window_size", side, -math.inf, math.inf) for side in expect_pair(window_size))
    return tuple(min(max(-1, side), FARTHEST) for side in sides)


def expect_tensor(name: str, tensor, dims: tuple | None = None) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    if dims is not None and tensor.dim() not in dims:
        expected = " or ".join(map(str, dims))
        raise ValueError(f"{name}: expected {expected} dimensions, found {tensor.dim()}: {list(tensor.shape)}")


def expect_device(name: str, tensor) -> None:
    if tensor.device.type != DEVICE_TYPE:
        raise ValueError(f"{name}: expected a CUDA tensor, found one on {tensor.device}")


def expect_query(tensor, dims: tuple, name: str = "q") -> None:
    expect_tensor(name, tensor, dims)
    if tensor.dtype not in (torch.float16, torch.bfloat16):
        raise NotImplementedError(f"{name}: expected torch.float16 or torch.bfloat16, found {tensor.dtype}")
    expect_device(name, tensor)


def expect_like(name: str, tensor, dims: tuple, dtype: torch.dtype, device: torch.device) -> None:
    expect_tensor(name, tensor, dims)
    if tensor.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype}, found {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, found one on {tensor.device}")


def expect_shape(name: str, tensor, shape: tuple) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {list(shape)}, found {list(tensor.shape)}")


def expect_indices(name: str, tensor, shape: tuple, device: torch.device) -> None:
    """An int32 tensor without gaps; None is fine."""
    if tensor is None:
        return
    expect_like(name, tensor, (len(shape),), torch.int32, device)
    expect_shape(name, tensor, shape)
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, found strides {list(tensor.stride())}")


def expect_rows(name: str, tensor) -> None:
    """Heads that the kernels can read: elements side by side, rows and heads at multiples of 16 bytes."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name}: expected a contiguous last dimension, found strides {list(tensor.stride())}")
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if size > 1 and stride * tensor.element_size() % 16 != 0:
            raise ValueError(f"{name}: expected strides of multiples of 16 bytes, found {list(tensor.stride())}")
