"""How attention_peers_cuda.py times a kernel: graphs of many calls, medians, and what clock and power the GPU had under way."""

import math
import statistics
import time

import torch

try:
    import pynvml
except ImportError:
    pynvml = None

GRAPH_SECONDS = 2e-3  # at least, so that a graph's own start does not count
MAX_RUNS = 2048
SAMPLES = 4  # of clock and power, each time that a side is measured


class Gauge:
    """The GPU's clock and power at this moment, where NVIDIA's management library can be asked (`pip install nvidia-ml-py`)."""

    def __init__(self):
        self._handle = None
        if pynvml is None:
            return
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self.read()
        except pynvml.NVMLError:
            self._handle = None

    def read(self) -> tuple[float, float] | None:
        """MHz of the SMs, watts."""
        if self._handle is None:
            return None
        clock = pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM)
        (power,) = pynvml.nvmlDeviceGetFieldValues(self._handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
        return clock, power.value.uiVal * 1e-3


def graph_of(calls: list, runs: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(runs):
            calls[i % len(calls)]()
    return graph


def graph_seconds(graph: torch.cuda.CUDAGraph, budget: float, gauge: Gauge | None = None) -> tuple[float, list]:
    """The median of those launches that fit in `budget` seconds, three at least, after as long a warm-up; readings of the gauge."""
    begin = time.perf_counter()
    while True:
        graph.replay()
        torch.cuda.synchronize()
        if time.perf_counter() - begin >= budget:
            break
    times, readings, begin = [], [], time.perf_counter()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    while len(times) < 3 or time.perf_counter() - begin < budget:
        before.record()
        graph.replay()
        after.record()
        if gauge is not None and time.perf_counter() - begin >= len(readings) * budget / SAMPLES:
            readings.append(gauge.read())
        after.synchronize()
        times.append(before.elapsed_time(after) * 1e-3)
    return statistics.median(times), readings


class Side:
    """One kernel on one shape: a graph of many calls that go round the copies of the inputs."""

    def __init__(self, calls: list):
        for call in calls[:3]:
            call()
        torch.cuda.synchronize()
        self._calls = calls  # the graph reads what they hold
        first, _ = graph_seconds(graph_of(calls, len(calls)), 0.01)
        rounds = max(1, min(math.ceil(GRAPH_SECONDS / first), math.ceil(MAX_RUNS / len(calls))))
        self._runs = rounds * len(calls)
        self._graph = graph_of(calls, self._runs)
        self._times, self._readings = [], []

    def measure(self, budget: float, gauge: Gauge) -> None:
        seconds, readings = graph_seconds(self._graph, budget, gauge)
        self._times.append(seconds / self._runs * 1e6)
        self._readings += [reading for reading in readings if reading is not None]

    @property
    def times(self) -> list[float]:
        """Microseconds, as the rounds gave them."""
        return self._times

    @property
    def readings(self) -> list:
        return self._readings


def figures(instances: list[Side]) -> dict:
    """Of the same kernel on inputs that lie elsewhere in memory, which alone makes 3% of difference: the mean of their medians."""
    medians = [statistics.median(side.times) for side in instances]
    mhz, watts = (
        zip(*(r for side in instances for r in side.readings), strict=True) if instances[0].readings else ((), ())
    )
    return {
        "us": statistics.mean(medians),
        "instances_us": medians,
        "rounds_us": [side.times for side in instances],
        "mhz": statistics.median(mhz) if mhz else None,
        "watts": statistics.median(watts) if watts else None,
    }
