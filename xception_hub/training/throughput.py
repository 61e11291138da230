"""Measures the speed of preparing images and of the network. The slower of the two limits the training."""

import time
from collections.abc import Generator, Iterable

from .batches import Batch


class Throughput:
    """Measures the images per second of input and network while batches pass.

    Args:
        workers: Number of worker processes that prepare batches; 0 if this process prepares them itself.
        processes: Number of training processes, assumed to be equally fast.
    """

    def __init__(self, workers: int, processes: int = 1) -> None:
        self.makers = max(workers, 1)
        self.processes = processes
        self.images = 0
        self.making = self.waiting = self.elapsed = 0.0

    def timed(self, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
        """Passes batches on, and measures how long each part takes."""
        start = asked = time.perf_counter()
        try:
            for batch in batches:
                self.waiting += time.perf_counter() - asked
                self.images += len(batch.inputs)
                self.making += batch.seconds
                yield batch
                asked = time.perf_counter()
        finally:
            self.elapsed += time.perf_counter() - start

    @property
    def model(self) -> float | None:
        """Images per second that the network takes, summed over all processes."""
        computing = self.elapsed - self.waiting
        return self.processes * self.images / computing if computing > 0 else None

    @property
    def input(self) -> float | None:
        """Images per second that are prepared, summed over all processes; None if they came from a cache."""
        return self.processes * self.makers * self.images / self.making if self.making else None

    def __str__(self) -> str:
        measured = {'network': self.model, 'input': self.input}
        rates = [f'{name} {rate:.1f} images/s' for name, rate in measured.items() if rate]
        if self.model and self.input:
            rates.append(f'{"input" if self.input < self.model else "network"} is the bottleneck')
        return ', '.join(rates)
