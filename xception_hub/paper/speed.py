"""Training steps per second of Xception and Inception V3 on this machine, side by side, for table 3.

The steps per second depend on the machine. Only their ratio can be compared with the paper.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F

import xception_hub  # noqa: F401 (registers the model)

from ..timing import device_model, rounds, timed
from . import quoted
from .checks import IMAGE_SIZE, MODELS

MIN_IMAGE_SIZE = 75  # pixels; below it, Inception V3 has no last map (Xception takes 71)
MIN_BATCH_SIZE = 2  # batch normalization cannot normalize a single value
NUM_CLASSES = 1000
DEFAULTS = {'cpu': (8, 1), 'cuda': (32, 10)}  # images in a batch, steps in a repeat


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        image_size: Height and width of the images in pixels.
        batch_size: Number of images in a training step.
        repeats: Number of timed repeats, after one that is not counted. The networks take turns in each.
        steps: Number of training steps in a repeat.

    Raises:
        ValueError: A value is too small.
    """

    image_size: int
    batch_size: int
    repeats: int
    steps: int

    def __post_init__(self) -> None:
        for name, minimum, reason in (
            ('image_size', MIN_IMAGE_SIZE, ' pixels, the least that Inception V3 takes'),
            ('batch_size', MIN_BATCH_SIZE, ', for batch normalization needs more than one image'),
            ('repeats', 1, ''),
            ('steps', 1, ''),
        ):
            value = getattr(self, name)
            if value < minimum:
                raise ValueError(f'{name}={value!r} is not possible: it must be at least {minimum}{reason}.')


class Speed(NamedTuple):
    """The result of a measurement.

    Attributes:
        machine: Device, threads and version of torch.
        workload: What was measured.
        steps_per_second: Median of the repeats for each network of `MODELS`.
        ratio: Xception's median divided by Inception V3's.
        ratio_range: Lowest and highest ratio of a repeat. They are far apart on a busy machine.
    """

    machine: str
    workload: Workload
    steps_per_second: dict[str, float]
    ratio: float
    ratio_range: tuple[float, float]


def device() -> torch.device:
    """The GPU if torch finds one, the CPU otherwise."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def workload(
    image_size: int = IMAGE_SIZE, batch_size: int | None = None, repeats: int = 5, steps: int | None = None
) -> Workload:
    """Makes a workload; None stands for the default of the device."""
    default_batch_size, default_steps = DEFAULTS[device().type]
    return Workload(
        image_size,
        default_batch_size if batch_size is None else batch_size,
        repeats,
        default_steps if steps is None else steps,
    )


def machine() -> str:
    """Describes the device in one line."""
    return f'{device_model(device())}, torch {torch.__version__}'


class Training:
    """A network with the paper's SGD and a batch of noise, in channels last and float32."""

    def __init__(self, name: str, workload: Workload) -> None:
        self.network = timm.create_model(MODELS[name], pretrained=False, drop_rate=quoted.DROPOUT)
        self.network.to(device(), memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=quoted.LEARNING_RATE,
            momentum=quoted.MOMENTUM,
            weight_decay=quoted.WEIGHT_DECAY[name],
        )
        shape = (workload.batch_size, 3, workload.image_size, workload.image_size)
        self.images = torch.randn(shape, device=device()).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(NUM_CLASSES, shape[:1], device=device())

    def step(self) -> None:
        """Takes one training step: forward, backward, update."""
        loss = F.cross_entropy(self.network(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(workload: Workload) -> Speed:
    """Measures both networks, which take turns."""
    steps = {name: timed(Training(name, workload).step, device(), workload.steps) for name in MODELS}
    taken = rounds(steps, workload.repeats)
    medians = {name: 1 / statistics.median(seconds) for name, seconds in taken.items()}
    ratios = [ratio({name: 1 / taken[name][repeat] for name in MODELS}) for repeat in range(workload.repeats)]
    return Speed(machine(), workload, medians, ratio(medians), (min(ratios), max(ratios)))


def ratio(speeds: Mapping[str, float]) -> float:
    """Xception's steps per second divided by Inception V3's."""
    return speeds['Xception'] / speeds['Inception V3']
