"""Training steps per second of Xception and Inception V3 on this machine, in turn, for table 3.

The steps per second depend on the machine. Only their ratio can be compared with the paper.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F

import xception_hub  # noqa: F401 (registers the model)

from ..timing import device_model, rounds, timed
from . import quoted
from .checks import IMAGE_SIZE, MODELS

MIN_IMAGE_SIZE = 75  # pixels; below it, Inception V3 has no last map (Xception takes 71)
NUM_CLASSES = 1000
DEFAULTS = {'cpu': (8, 1), 'cuda': (32, 10)}  # images in a batch, steps in a repeat
REPEATS = 5  # after one that is not counted


def device() -> torch.device:
    """The GPU if torch finds one, the CPU otherwise."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def machine() -> str:
    """Describes the device in one line."""
    return f'{device_model(device())}, torch {torch.__version__}'


def training_step(name: str, image_size: int, batch_size: int) -> Callable[[], None]:
    """A step of the paper's SGD for a network of `MODELS`, on noise [B, 3, H, W] in channels last and float32."""
    network = timm.create_model(MODELS[name], pretrained=False, drop_rate=quoted.DROPOUT)
    network.to(device(), memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=quoted.LEARNING_RATE, momentum=quoted.MOMENTUM, weight_decay=quoted.WEIGHT_DECAY[name]
    )
    images = torch.randn(batch_size, 3, image_size, image_size, device=device())
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(NUM_CLASSES, (batch_size,), device=device())

    def step() -> None:
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(image_size: int = IMAGE_SIZE, batch_size: int | None = None) -> dict[str, Any]:
    """Measures both networks, which take turns.

    Args:
        image_size: Height and width of the images in pixels.
        batch_size: Number of images in a training step; None for the default of the device.

    Returns:
        The settings, the machine, the median steps per second of each network, their ratio, and the lowest and highest
        ratio of a repeat, which are far apart on a busy machine.
    """
    default_size, steps = DEFAULTS[device().type]
    batch_size = batch_size or default_size
    contenders = {name: timed(training_step(name, image_size, batch_size), device(), steps) for name in MODELS}
    taken = rounds(contenders, REPEATS)
    speeds = {name: 1 / statistics.median(seconds) for name, seconds in taken.items()}
    ratios = [ratio(dict(zip(MODELS, [1 / value for value in seconds]))) for seconds in zip(*taken.values())]
    return dict(
        settings=dict(image_size=image_size, batch_size=batch_size, repeats=REPEATS, steps=steps),
        machine=machine(),
        steps_per_second=speeds,
        ratio=ratio(speeds),
        ratio_range=(min(ratios), max(ratios)),
    )


def ratio(speeds: Mapping[str, float]) -> float:
    """Xception's steps per second divided by Inception V3's."""
    return speeds['Xception'] / speeds['Inception V3']
