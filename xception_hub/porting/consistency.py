"""A proof that needs no Keras: on photos, the input of each batch normalization has about the mean that it remembers.

It finds confused normalizations and kernels, and images in another range. It does not see pool padding or a wrong
classifier, so it is no proof of parity and is never called one.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..topology import MODULES

# Median over the channels of |mean of the input - moving mean| / moving standard deviation. The genuine weights reach
# 0.7 on few photos; a confused normalization is at 1.4 and more.
MOST = 1.0


@dataclass(frozen=True)
class Consistency:
    """How far each normalization's input is from what it remembers, in its standard deviations.

    Attributes:
        deviations: Normalization -> median deviation over its channels, in the order of computation.
        exchanged: Module -> sum of the deviations of its residual normalization and its last one, as they are and if
            they were exchanged: the two have the same shape, and in files without names only their place in an order.
        images: Number of images that were fed.
    """

    deviations: dict[str, float]
    exchanged: dict[str, tuple[float, float]]
    images: int

    @property
    def first_wrong(self) -> str | None:
        """The first normalization, in the order of computation, whose deviation is more than `MOST`."""
        return next((name for name, value in self.deviations.items() if not value <= MOST), None)

    @property
    def first_exchanged(self) -> str | None:
        """The first module whose two normalizations would be nearer to their inputs if they were exchanged."""
        return next((name for name, (now, then) in self.exchanged.items() if now > then), None)

    @property
    def worst(self) -> float:
        return max(self.deviations.values())


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes hooks afterwards."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def check_consistency(model: nn.Module, images: np.ndarray) -> Consistency:
    """Feeds images [B, H, W, C], prepared as in training, and measures the inputs of the 40 normalizations."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    means: dict[str, Tensor] = {}

    def keep(name: str, inputs: tuple[Tensor]) -> None:  # [B, C, H, W]
        means[name] = inputs[0].mean((0, 2, 3))

    with hooked(norm.register_forward_pre_hook(lambda _, x, name=name: keep(name, x)) for name, norm in norms.items()):
        model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2)).float())

    def deviation(entering: str, remembered: str) -> float:
        norm = norms[remembered]
        variance = norm.get_buffer('running_var') + norm.eps
        return ((means[entering] - norm.get_buffer('running_mean')) / variance.sqrt()).abs().median().item()

    exchanged = {}
    for module in (module.torch for module in MODULES if module.strided):
        a, b = f'{module}.shortcut.bn', f'{module}.stack.bn2'
        exchanged[module] = deviation(a, a) + deviation(b, b), deviation(a, b) + deviation(b, a)
    return Consistency({name: deviation(name, name) for name in means}, exchanged, len(images))
