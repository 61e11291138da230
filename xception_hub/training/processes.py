"""The processes of a training, which work together, with their devices, workers, memory format and progress."""

import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, tqdm
from torch import Tensor
from torch.utils.data import DataLoader

from ..allocator import keep_freed_memory, return_freed_memory
from ..errors import printable_lines
from .batches import Batch, loader
from .settings import MachineSettings, OutputSettings
from .throughput import Throughput

MAX_WORKERS = 8


class Machine(Accelerator):
    """The processes that work together, as accelerate shows them to each one.

    Args:
        workers: Processes that decode images, for each process that trains; 0 for none but that one. By default up to 8
            on a GPU, and none on a CPU.
        memory_format: Memory format of images and weights on the device.
        options: Arguments of accelerate's Accelerator.
    """

    def __init__(
        self, workers: int | None = None, memory_format: torch.memory_format = torch.preserve_format, **options: Any
    ) -> None:
        super().__init__(**options)
        if workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
            workers = 0 if self.device.type == 'cpu' else min(MAX_WORKERS, cores // self.num_processes)
        self.workers = workers
        self.memory_format = memory_format

    def print(self, *texts: str, **options: Any) -> None:
        """Prints in one process only."""
        super().print(*map(printable_lines, texts), **options)

    def loader(self, dataset: Any, batches: Any) -> DataLoader:
        """Batches of a dataset in the order of a batch sampler; see `batches.loader`."""
        return loader(dataset, batches, self.workers, self.device.type == 'cuda')

    def put(self, batch: Batch) -> Batch:
        """A batch on this process' device."""
        return batch.to(self.device, self.memory_format)

    def throughput(self) -> Throughput:
        """A new measurement."""
        return Throughput(self.workers, self.num_processes)

    def progress(self, name: str, total: int, initial: int = 0) -> Any:
        """A progress bar of images in one process; into a file it writes a line every 30 seconds."""
        return tqdm(
            desc=name,
            total=total,
            initial=initial,
            unit='img',
            leave=False,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
        )

    def gather_values(self, values: list[Any]) -> list[Any]:
        """Returns the values of all processes in one list, in the order of the processes."""
        return gather_object(values)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors [...] in all processes with those of the first process."""
        if self.num_processes > 1:
            for tensor in tensors:
                tensor.detach().copy_(broadcast(tensor.detach().contiguous()))


def start(settings: MachineSettings, output: OutputSettings) -> Machine:
    """Starts accelerate."""
    return_freed_memory() if settings.gradient_checkpointing else keep_freed_memory()
    machine = Machine(
        settings.workers,
        torch.channels_last if settings.channels_last else torch.preserve_format,
        mixed_precision=settings.mixed_precision,
        log_with=list(output.tracker) or None,
        project_dir=str(output.output),
    )
    if not machine.is_main_process:
        warnings.simplefilter('ignore')  # all processes have the same warnings
    return machine
