"""A proof that needs no Keras: on photos, the input of each batch normalization has about the mean that it remembers.

It finds confused normalizations and kernels, and images in another range. It does not see pool padding or a wrong
classifier, so it is no proof of parity and is never called one.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..topology import MODULES

# Median over the channels of |mean of the input - moving mean| / moving standard deviation. The genuine weights reach
# 0.7 on few photos; a confused normalization is at 1.4 and more.
MOST = 1.0


@dataclass(frozen=True)
class Finding:
    """A proof of another kind than a comparison with Keras.

    Attributes:
        proof: What it is called.
        passed: Its verdict.
        decisive: Whether the conversion fails with it: where there is no better proof of the same.
        summary: One line for people.
        figures: For parity.json.
    """

    proof: str
    passed: bool
    decisive: bool
    summary: str
    figures: dict[str, Any] = field(default_factory=dict)


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes hooks afterwards."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def check_consistency(model: nn.Module, images: np.ndarray) -> tuple[Finding, Finding]:
    """Feeds images [B, H, W, C], prepared as in training, and measures the inputs of the 40 normalizations.

    Returns:
        Whether each has about the mean that it remembers, in its standard deviations; and whether the residual one and
        the last one of a module would fit better if they were exchanged. They have the same shape, and in files
        without names only their place in an order.
    """
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

    found = {name: deviation(name, name) for name in means}  # in the order of computation
    wrong = next((name for name, value in found.items() if not value <= MOST), None)
    where = f', wrong from {wrong} on: check how images are prepared' if wrong else ''
    summary = (
        f'on {len(images)} images the worst of {len(found)} normalizations is off by {max(found.values()):.2f} '
        f'standard deviations, of {MOST:.0f} at most{where}'
    )
    figures = dict(images=len(images), deviations=found, first_wrong=wrong, limit=MOST)
    statistics = Finding('moving statistics', wrong is None, True, summary, figures)
    exchanged = {}
    for module in (module.torch for module in MODULES if module.strided):
        a, b = f'{module}.shortcut.bn', f'{module}.stack.bn2'
        exchanged[module] = found[a] + found[b], deviation(a, b) + deviation(b, a)
    first = next((name for name, (now, then) in exchanged.items() if now > then), None)
    pairs = '; '.join(f'{name} {now:.2f} against {then:.2f}' for name, (now, then) in exchanged.items())
    summary = f'deviations as they are, and exchanged with the last of their module: {pairs}'
    figures = dict(exchanged=exchanged, first_exchanged=first)
    return statistics, Finding('residual normalizations', first is None, True, summary, figures)
