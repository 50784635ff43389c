"""What one thread keeps for one GPU and stream: the scratch memory of the kernels and small constant tensors. All of it
comes from torch's caching allocator; what a CUDA graph uses comes from that graph's capture, so that a replay finds it."""

import ctypes
import threading

import torch

from onepass import _library

MAX_CALLS = 1024  # prepared calls that a thread keeps
MAX_CONSTANTS = 512
SCRATCH_STEP = 1 << 20


def raw_stream(index: int) -> int:
    """The cudaStream_t of torch's current stream."""
    return torch.cuda.current_stream(index).cuda_stream


# The same without checks that cost a microsecond each, where this torch has them.
raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", raw_stream)
current_device = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)
is_capturing = getattr(torch._C, "_cuda_isCurrentStreamCapturing", torch.cuda.is_current_stream_capturing)


class Memory:
    """Of one stream, outside of graphs (capture 0) or in one capture."""

    def __init__(self, device: torch.device, capture: int):
        self.device = device
        self.capture = capture
        self._scratch = {}
        self._constants = {}
        self._lengths = (-1, None)

    def scratch(self, name, size: int) -> torch.Tensor:
        """Bytes that were zero at first; the same ones at every call with this name, unless it needs more."""
        found = self._scratch.get(name)
        if found is None or found.numel() < size:
            size = max(1, -(-size // SCRATCH_STEP)) * SCRATCH_STEP
            found = self._scratch[name] = torch.zeros(size, dtype=torch.uint8, device=self.device)
        return found

    def lengths(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for two int32 arrays of batch + 1."""
        if batch > self._lengths[0]:
            size = max(256, 2 * batch)
            room = torch.zeros((2, size), dtype=torch.int32, device=self.device)
            self._lengths = (size - 1, (room[0], room[1]))
        return self._lengths[1]

    def steps(self, count: int, step: int) -> torch.Tensor:
        """int32 [0, step, 2 * step, ...], `count` of them: the boundaries of sequences of one length."""
        return self._constant(
            ("steps", count, step),
            lambda: torch.arange(count, dtype=torch.int32, device=self.device).mul_(step),
        )

    def full(self, count: int, value: int) -> torch.Tensor:
        """int32 [value, value, ...]"""
        return self._constant(
            ("full", count, value), lambda: torch.full((count,), value, dtype=torch.int32, device=self.device)
        )

    def _constant(self, key: tuple, make) -> torch.Tensor:
        found = self._constants.get(key)
        if found is None:
            if len(self._constants) >= MAX_CONSTANTS:
                self._constants.clear()
            found = self._constants[key] = make()
        return found


class Gpu:
    def __init__(self, library: _library.Library, index: int):
        self.index = index
        self.device = torch.device("cuda", index)
        self._library = library
        self._memories = {}
        self.handle = ctypes.c_void_p()
        library.device_open(index, ctypes.byref(self.handle))

    def memory(self, stream: int) -> Memory:
        """For what is queued on `stream` now. Of captures the latest is kept."""
        capturing = is_capturing()
        capture = 0
        if capturing:
            number = ctypes.c_uint64()
            self._library.stream_capture_id(stream, ctypes.byref(number))
            capture = number.value
        found = self._memories.get((stream, capturing))
        if found is None or found.capture != capture:
            found = self._memories[(stream, capturing)] = Memory(self.device, capture)
        return found


class Calls:
    """A thread's prepared calls, by what determines them, and the last of them."""

    def __init__(self):
        self.known = {}
        self.last_key = self.last = None

    def keep(self, key: tuple, call) -> None:
        if len(self.known) >= MAX_CALLS:
            self.known.clear()
        self.known[key] = call


class _Thread(threading.local):
    def __init__(self):
        self.gpus = {}
        self.calls = Calls()
        self.nothing = {}


_thread = _Thread()
_loaded = []


def native() -> _library.Library:
    """Loaded at the first call, so that importing the package needs neither a GPU nor the library."""
    if not _loaded:
        _loaded.append(_library.Library(_library.shared_library_path()))
    return _loaded[0]


def gpu(index: int) -> Gpu:
    found = _thread.gpus.get(index)
    if found is None:
        found = _thread.gpus[index] = Gpu(native(), index)
    return found


def calls() -> Calls:
    return _thread.calls


def nothing(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors without elements."""
    found = _thread.nothing.get(device)
    if found is None:
        found = _thread.nothing[device] = (torch.empty(0, device=device), torch.empty(0, device=device))
    return found
