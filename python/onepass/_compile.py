"""torch.compile cannot trace calls into a library: what makes them is left out of it, and the graph breaks there."""

import torch

_compiler = getattr(torch, "compiler", None)


def _never() -> bool:
    return False


is_compiling = getattr(_compiler, "is_compiling", _never)


def uncompiled(function):
    """Costs a microsecond or two a call."""
    return _compiler.disable(function) if _compiler is not None else function
