"""What depends on the machine: the processes that work together, their devices, workers, memory format and progress."""

import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast, gather_object, tqdm
from torch import Tensor
from torch.utils.data import DataLoader

from ..allocator import keep_freed_memory, return_freed_memory
from ..errors import SettingsError, printable_lines
from ..timing import lacks_bf16
from .batches import Batch, loader
from .settings import Settings
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


def start(settings: Settings) -> Machine:
    """Starts accelerate with the settings.

    Raises:
        SettingsError: A tracker is not installed, fp16 is chosen on a CPU (accelerate would ignore both), or the kind
            of parallelism is not supported.
    """
    return_freed_memory() if settings.machine.gradient_checkpointing else keep_freed_memory()
    available = [str(tracker) for tracker in get_available_trackers()]
    missing = [tracker for tracker in settings.output.tracker if tracker not in available]
    if missing:
        raise SettingsError(
            f'The tracker {missing[0]!r} is not installed (pip install {missing[0]}). '
            f'Available: {", ".join(available) or "none"}.'
        )
    accelerator = Accelerator(
        mixed_precision=settings.machine.mixed_precision,
        log_with=list(settings.output.tracker) or None,
        project_dir=str(settings.output.output),
    )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise SettingsError(f'{accelerator.distributed_type} is not supported. Choose plain data parallelism.')
    on_cpu = accelerator.device.type == 'cpu'
    if accelerator.mixed_precision == 'fp16' and on_cpu:
        raise SettingsError('fp16 needs a GPU. On a CPU choose --mixed-precision bf16 or no.')
    if not accelerator.is_main_process:
        warnings.simplefilter('ignore')  # all processes have the same warnings
    if accelerator.mixed_precision == 'bf16' and on_cpu and lacks_bf16(accelerator.device):
        warnings.warn(
            'This CPU has no arithmetic for bf16, which is many times slower than float32 here.', stacklevel=2
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    workers = 0 if on_cpu else min(MAX_WORKERS, cores // accelerator.num_processes)
    if settings.machine.workers is not None:
        workers = settings.machine.workers
    memory_format = torch.channels_last if settings.machine.channels_last else torch.preserve_format
    return Machine(accelerator, workers, memory_format)
