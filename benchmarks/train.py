"""python benchmarks/train.py

Compares the training step of `xception_paper` (forward, backward, SGD with momentum, as in finetune.py) with that of
timm's `legacy_xception`: images per second and peak memory, contenders in turn, each in a process of its own. Measures
what gradient checkpointing saves and costs, and whether photos are prepared faster than the network trains on them.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import timm
import torch
import torch.nn.functional as F
from cyclopts import App
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

from port_a_keras_model import download

from xception_hub.allocator import keep_freed_memory, release_freed_memory, return_freed_memory
from xception_hub.data.labelled import Split
from xception_hub.models.build import Transforms, build
from xception_hub.timing import device_model, in_turn, lacks_bf16
from xception_hub.training.batches import Batching, Images, TrainingBatches, loader
from xception_hub.training.recipes import RECIPES
from xception_hub.training.settings import Augmentation


class Variant(NamedTuple):
    """A contender. All contenders train their batch normalization."""

    model: str
    channels_last: bool
    memory: Callable[[], None] | None  # what becomes of freed memory; None for what the C library does by itself
    bf16: bool = False
    checkpointing: bool = False


BASELINE = Variant('legacy_xception', channels_last=False, memory=None)
PAPER = Variant('xception_paper', channels_last=True, memory=keep_freed_memory)
CHECKPOINTED = PAPER._replace(checkpointing=True, memory=return_freed_memory)
CONTENDERS = {
    'legacy_xception, NCHW float32': BASELINE,
    'the same, freed memory kept': BASELINE._replace(memory=keep_freed_memory),
    'xception_paper, float32': PAPER,
    'xception_paper, bf16': PAPER._replace(bf16=True),
}
INPUT_BATCH = 16
WORKERS = (0, 1, 2)

app = App(help=__doc__, version_flags=[])
prepared: list['Training'] = []


class Training:
    """A model, its gradients, its optimizer with state, and a batch of noise, in a process of their own."""

    def __init__(self, variant: Variant, size: int, batch_size: int) -> None:
        if variant.memory:
            variant.memory()
        memory_format = torch.channels_last if variant.channels_last else torch.contiguous_format
        self.variant = variant
        self.model = timm.create_model(variant.model).to(memory_format=memory_format).train()
        if variant.checkpointing:
            self.model.set_grad_checkpointing()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=memory_format)
        self.labels = torch.randint(1000, (batch_size,))

    def loss(self) -> Tensor:
        with torch.autocast('cpu', torch.bfloat16, enabled=self.variant.bf16):
            return F.cross_entropy(self.model(self.images), self.labels)

    def step(self, keep_gradients: bool = False) -> float:
        """Takes one training step; returns the seconds that it took."""
        start = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not keep_gradients)
        return time.perf_counter() - start


@contextmanager
def training(variants: dict[str, Variant], *arguments: int) -> Iterator[dict[str, Callable[[], float]]]:
    """A step of each variant, which runs in a process that was made for it."""
    with ExitStack() as stack:
        steps: dict[str, Callable[[], float]] = {}
        for name, variant in variants.items():
            process = stack.enter_context(new_process())
            process.submit(prepare, variant, *arguments).result()
            steps[name] = partial(in_process, process)
        yield steps


def new_process() -> ProcessPoolExecutor:
    """One that has imported what takes seconds, and has done nothing else."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['datasets', 'timm'])
    return ProcessPoolExecutor(1, context)


def prepare(variant: Variant, size: int, batch_size: int, threads: int) -> None:
    """Makes what `step` takes its steps of, in a process of its own."""
    torch.set_num_threads(threads)
    prepared.append(Training(variant, size, batch_size))


def step() -> float:
    return prepared[-1].step()


def in_process(process: ProcessPoolExecutor) -> float:
    return process.submit(step).result()


class Memory(NamedTuple):
    """MB of a step on top of model, gradients and optimizer, and of the whole process."""

    on_top: float
    process: float


def megabytes(key: str) -> float:
    """Memory of this process in MB, by its key in /proc/self/status."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ':'))


def peak(variant: Variant, size: int, batch_size: int, threads: int) -> Memory:
    """Peak memory of this process. It must be new: a later step reuses pages of the first one."""
    torch.set_num_threads(threads)
    Training(variant, 71, 1).step()  # allocates the libraries' own buffers
    training = Training(variant, size, batch_size)
    release_freed_memory()  # of the construction
    before = megabytes('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    training.step(keep_gradients=True)
    highest = megabytes('VmHWM')
    return Memory(highest - before, highest)


@cache
def peaks(variant: Variant, *arguments: int, runs: int) -> Memory:
    """Median peak memory of several new processes."""
    found = []
    for _ in range(runs):
        with new_process() as process:
            found.append(process.submit(peak, variant, *arguments).result())
    return Memory(*map(statistics.median, zip(*found)))


def input_rate(images: Images, workers: int) -> float:
    """Images per second of the second epoch, when the workers have started already."""
    batches = loader(images, TrainingBatches(images.split, Batching(len(images.split), INPUT_BATCH), 0), workers)
    for _ in range(2):
        start = time.perf_counter()
        count = sum(len(batch.inputs) for batch in batches)
        seconds = time.perf_counter() - start
    return count / seconds


def photos(recipe: str, size: int, count: int) -> Images:
    """Photos of the checkpoint's package, augmented as in a recipe."""
    known = {field.name for field in fields(Augmentation)}
    a = replace(Augmentation(), **{name: value for name, value in RECIPES[recipe].items() if name in known})
    files = [{'path': str(photo), 'bytes': None} for photo in download().photos]
    source = datasets.Dataset.from_dict(
        dict(image=[files[i % len(files)] for i in range(count)]),
        features=datasets.Features(image=datasets.Image(decode=False)),
    )
    split = Split('photos', source, np.arange(count), np.zeros(count, np.int64))
    transforms = Transforms(build('xception_paper', 2, False, {}, size), size)
    transform = transforms.training(**a.of_transform())
    return Images(split, transform, transforms.min_side_for(a.crop_scale))


def print_speed(size: int, batch_size: int, repeats: int, threads: int, memory_runs: int) -> float:
    """Prints a row for each contender; returns images per second of the fastest xception_paper."""
    compared = {name: v for name, v in CONTENDERS.items() if not (v.bf16 and lacks_bf16(torch.device('cpu')))}
    with training(compared, size, batch_size, threads) as steps:
        seconds = in_turn(steps, repeats)
    first, _, *others = seconds.values()
    print(f'{"training step":32}{"images/s":>10}{"ratio":>8}{"peak MB of the process":>25}')
    for name, variant in compared.items():
        process = peaks(variant, size, batch_size, threads, runs=memory_runs).process
        print(f'{name:32}{batch_size / seconds[name]:10.2f}{first / seconds[name]:8.2f}{process:25.0f}')
    if lacks_bf16(torch.device('cpu')):
        print('bf16: not measured, because this CPU only emulates it')
    return batch_size / min(others)


def print_checkpointing(size: int, batch_size: int, repeats: int, threads: int, memory_runs: int) -> None:
    """Prints the memory that checkpointing saves, and the time it costs."""
    variants = {'without': PAPER._replace(memory=None), 'with': CHECKPOINTED}
    with training(variants, size, batch_size, threads) as steps:
        seconds = in_turn(steps, repeats)
    memory = {name: peaks(v, size, batch_size, threads, runs=memory_runs) for name, v in variants.items()}
    print(f'\n{"gradient checkpointing, float32":32}{"peak MB":>10}{"s a step":>10}')
    for name in variants:
        print(f'{name:32}{memory[name].on_top:10.0f}{seconds[name]:10.2f}')
    saved = memory['without'].on_top / memory['with'].on_top
    print(f'{"ratio":32}{saved:10.2f}{seconds["with"] / seconds["without"]:10.2f}')
    print('peak: resident memory on top of model, gradients and optimizer')


def print_input(size: int, network: float, count: int) -> None:
    """Prints images per second for each recipe and number of workers, and whether input or network is the limit."""
    print(f'\n{"input, photos of a megapixel":32}' + ''.join(f'{f"{n} workers":>12}' for n in WORKERS))
    for recipe in ('transfer', 'full'):
        images = photos(recipe, size, count)
        rates = [input_rate(images, workers) for workers in WORKERS]
        binds = 'input' if rates[0] < network else 'network'
        print(
            f'{recipe:32}'
            + ''.join(f'{rate:12.1f}' for rate in rates)
            + f'  images/s; the {binds} binds ({network:.1f} images/s)'
        )


@app.default
def main(
    *,
    size: int = 299,
    batch_size: int = 8,
    repeats: int = 5,
    threads: int | None = None,
    memory_runs: int = 3,
    photos: int = 144,
) -> None:
    """Measures time and memory; needs Linux, which reports peak memory.

    Args:
        size: Height and width of the images in pixels.
        batch_size: Number of images in a training step.
        repeats: Number of timed repeats, after one that is not counted. Their median is printed.
        threads: Number of threads of torch. By default torch chooses.
        memory_runs: Number of new processes for each figure of memory. Their median is printed.
        photos: Number of photos to prepare.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    shape = (size, batch_size, repeats, torch.get_num_threads())
    print(
        f'python benchmarks/train.py --size {size} --batch-size {batch_size} --repeats {repeats} --threads {shape[3]}'
    )
    print(f'{device_model("cpu")}, torch {torch.__version__}, timm {timm.__version__}\n')
    network = print_speed(*shape, memory_runs)
    print_checkpointing(*shape, memory_runs)
    print_input(size, network, photos)


if __name__ == '__main__':
    app()
