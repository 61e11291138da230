"""The processes of a training, which work together, with their devices, workers, memory format and progress."""

import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Machine:
    """The processes that work together, seen from one of them.

    Attributes:
        accelerator: accelerate's view of them.
        workers: Processes that decode images, for each process that trains; 0 for none but that one.
        memory_format: Memory format of images and weights on the device.
    """

    accelerator: Accelerator
    workers: int = 0
    memory_format: torch.memory_format = torch.preserve_format

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def print(self, text: str) -> None:
        """Prints in one process only."""
        self.accelerator.print(printable_lines(text))

    def loader(self, dataset: Any, batches: Any) -> DataLoader:
        """Batches of a dataset in the order of a batch sampler; see `batches.loader`."""
        return loader(dataset, batches, self.workers, self.device.type == 'cuda')

    def put(self, batch: Batch) -> Batch:
        """A batch on this process' device."""
        return batch.to(self.device, self.memory_format)

    def throughput(self) -> Throughput:
        """A new measurement."""
        return Throughput(self.workers, self.processes)

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

    def gather(self, values: list[Any]) -> list[Any]:
        """Returns the values of all processes in one list."""
        return gather_object(values)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors [...] in all processes with those of the first process."""
        if self.processes > 1:
            for tensor in tensors:
                tensor.detach().copy_(broadcast(tensor.detach().contiguous()))


def start(settings: MachineSettings, output: OutputSettings) -> Machine:
    """Starts accelerate."""
    return_freed_memory() if settings.gradient_checkpointing else keep_freed_memory()
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision, log_with=list(output.tracker) or None, project_dir=str(output.output)
    )
    if not accelerator.is_main_process:
        warnings.simplefilter('ignore')  # all processes have the same warnings
    workers = settings.workers
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        workers = 0 if accelerator.device.type == 'cpu' else min(MAX_WORKERS, cores // accelerator.num_processes)
    memory_format = torch.channels_last if settings.channels_last else torch.preserve_format
    return Machine(accelerator, workers, memory_format)
