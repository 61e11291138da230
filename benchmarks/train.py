"""python benchmarks/train.py

The training step (forward, backward, SGD with momentum) of `xception_paper`, as finetune.py takes it, beside that of
timm's `legacy_xception`: images per second, the contenders in turn, medians; the memory of a step with and without
gradient checkpointing, in processes of their own; and how fast photos are made ready for it.
"""
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from cyclopts import App
from datasets import Dataset
from timm.optim import create_optimizer_v2

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

from port_a_keras_model import download

from xception_hub.training.data import Split
from xception_hub.training.memory import measure
from xception_hub.training.models import Transforms, build
from xception_hub.training.pace import Pace, cpu_emulates_bf16
from xception_hub.training.recipes import RECIPES
from xception_hub.training.samples import Images, Plan, TrainingBatches, loader

# What is compared: model, channels_last, bf16; the first is what the ratios are to.
CONTENDERS = {
    'legacy_xception': ('legacy_xception', False, False),
    'legacy_xception, channels_last': ('legacy_xception', True, False),
    'xception_paper': ('xception_paper', True, False),
    'xception_paper, bf16': ('xception_paper', True, True),
}
PHOTOS = 288  # to be made ready: the 18 of the checkpoint's package, again and again

app = App(help=__doc__, version_flags=[])


def make_step(model: Any, channels_last: bool, bf16: bool, size: int, batch_size: int) -> Callable[[], None]:
    """A training step on noise."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=memory_format).train()
    optimizer = create_optimizer_v2(model, 'sgd', lr=1e-3, momentum=0.9)
    images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=memory_format)
    labels = torch.randint(1000, (batch_size,))

    def step() -> None:
        with torch.autocast('cpu', torch.bfloat16) if bf16 else nullcontext():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def speed(size: int, batch_size: int, repeats: int) -> None:
    """Prints images per second of each contender."""
    steps = {label: make_step(timm.create_model(name), channels_last, bf16, size, batch_size)
             for label, (name, channels_last, bf16) in CONTENDERS.items() if not (bf16 and cpu_emulates_bf16())}
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for repeat in range(repeats + 1):
        for label, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat:  # the first is a warm-up
                seconds[label].append(time.perf_counter() - start)
    first = statistics.median(next(iter(seconds.values())))
    for label, values in seconds.items():
        median = statistics.median(values)
        print(f'{label:34} {batch_size / median:6.2f} images/s {first / median:6.2f}x   '
              f'({min(values):.2f} to {max(values):.2f} s a step)')
    if cpu_emulates_bf16():
        print('bf16 is not measured: this CPU has no arithmetic for it')


def memory(size: int, batch_size: int, repeats: int) -> None:
    """Prints what a step of xception_paper needs beside weights, gradients and the optimizer's state."""
    found = {}
    for checkpointing in (False, True):
        runs = [json.loads(subprocess.run(
            [sys.executable, __file__, 'peak', str(size), str(batch_size), *(['--checkpointing'] * checkpointing)],
            check=True, text=True, capture_output=True).stdout) for _ in range(repeats)]
        found[checkpointing] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        label = 'with gradient checkpointing' if checkpointing else 'without'
        print(f'{label:34} {found[checkpointing]["peak"]:6.0f} MB at the peak, {found[checkpointing]["kept"]:6.0f} MB '
              f'kept for the backward pass, {found[checkpointing]["seconds"]:.2f} s a step')
    plain, checkpointed = found[False], found[True]
    print(f'{"ratios":34} {plain["peak"] / checkpointed["peak"]:6.2f}x at the peak, '
          f'{plain["kept"] / checkpointed["kept"]:6.2f}x kept, {checkpointed["seconds"] / plain["seconds"]:.2f} of the '
          f'time')


@app.command(show=False)
def peak(size: int, batch_size: int, *, checkpointing: bool = False) -> None:
    """One measurement of `memory`, of this process."""
    model = timm.create_model('xception_paper')
    model.set_grad_checkpointing(checkpointing)
    step = make_step(model, True, False, size, batch_size)
    step()
    ctypes.CDLL(None).malloc_trim(0)  # pages that the allocator has kept from the first step
    before = status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    highest = status('VmHWM')
    images = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    kept = measure(model, optimizer, lambda: model(images).sum(), batch_size).activations
    print(json.dumps(dict(peak=highest - before, kept=kept / 1e6, seconds=seconds)))


def status(key: str) -> float:
    """A figure of this process, in MB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ':'))


def pipeline(size: int) -> None:
    """Prints how many photos per second are decoded and augmented, apart from any network."""
    files = [{'path': str(photo), 'bytes': None} for photo in download().photos]
    cells = [files[i % len(files)] for i in range(PHOTOS)]
    split = Split('photos', Dataset.from_dict(dict(image=cells)), np.arange(PHOTOS), np.zeros(PHOTOS, np.int64))
    transforms = Transforms(build('xception_paper', 2, False, {}, size), size)
    for recipe in ('transfer', 'full'):
        values = RECIPES[recipe]()
        transform = transforms.training(
            values['crop_scale'], hflip=values['flip'], auto_augment=values.get('auto_augment'), color_jitter=0.)
        images = Images(split, transform, transforms.needed_for(values['crop_scale']))
        for workers in (0, 1, 2):
            pace = Pace(workers)
            start = time.perf_counter()
            for _ in pace.timed(loader(images, TrainingBatches(split, Plan(PHOTOS, 32), 0), workers)):
                pass
            rate = PHOTOS / (time.perf_counter() - start)
            print(f'{f"recipe {recipe}, {workers} workers":34} {rate:6.1f} images/s')


@app.default
def main(*, size: int = 299, batch_size: int = 8, repeats: int = 5, threads: int | None = None) -> None:
    """Measures.

    Args:
        size: Height and width of the images in pixels.
        batch_size: Images in a step.
        repeats: Of which the median is taken.
        threads: Of torch; all cores by default.
    """
    if threads:
        torch.set_num_threads(threads)
    print(f'{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {size}x{size} pixels, '
          f'batch {batch_size}, medians of {repeats}\n\nTraining step')
    speed(size, batch_size, repeats)
    print('\nMemory of a step, float32, above weights, gradients and momenta')
    memory(size, batch_size, min(repeats, 3))
    print('\nInput: photos of 0.1 to 12 megapixels, decoded and augmented')
    pipeline(size)


if __name__ == '__main__':
    app()
