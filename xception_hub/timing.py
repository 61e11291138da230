"""How speed is measured: contenders in turn, on a machine with a name and with the arithmetic that it has."""

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def cpu_model() -> str:
    """Name of the CPU, as Linux gives it; elsewhere that of its architecture."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    return next((line.partition(': ')[2] for line in lines if line.startswith('model name')), platform.machine())


def device_model(device: str | torch.device) -> str:
    """Name of a device; of the CPU also its vector instructions and torch's number of threads."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{cpu_model()} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads'


def lacks_bf16(device: torch.device) -> bool:
    """Whether a device has no instructions for bf16, so that it computes slower in it than in float32."""
    if device.type == 'cuda':
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()
    return not any(present for name, present in capabilities.items() if 'bf16' in name)


def timed(call: Callable[[], object], device: str | torch.device = 'cpu', calls: int = 1) -> Callable[[], float]:
    """A step for `in_turn`: makes calls, waits until the device has done its work, and returns the seconds of a call.

    A short call that takes turns with others meets caches and threads as they left them, and several one after another
    meet their own.
    """
    synchronize = torch.cuda.synchronize if torch.device(device).type == 'cuda' else lambda: None

    def step() -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize()
        return (time.perf_counter() - start) / calls

    return step


def rounds(steps: Mapping[Any, Callable[[], float]], repeats: int, limit: float = math.inf) -> dict[Any, list[float]]:
    """Seconds of each step in each round, after one round that is not counted.

    Args:
        steps: Name -> step, which returns the seconds that it took.
        repeats: Number of rounds that are counted, in each of which all steps take turns.
        limit: Seconds after which no further round begins. Two are counted in any case.
    """
    end = time.perf_counter() + limit
    taken: list[dict[Any, float]] = []
    while len(taken) <= repeats and (len(taken) < 3 or time.perf_counter() < end):
        taken.append({name: step() for name, step in steps.items()})
    return {name: [seconds[name] for seconds in taken[1:]] for name in steps}


def in_turn(steps: Mapping[Any, Callable[[], float]], repeats: int, limit: float = math.inf) -> dict[Any, float]:
    """Median seconds of each step, see `rounds`."""
    return {name: statistics.median(seconds) for name, seconds in rounds(steps, repeats, limit).items()}
