"""python benchmarks/explanations.py

What the maps of `xception-hub explain` depend on, with the weights of examples/port_a_keras_model.py on its photos. The
sanity checks of Adebayo et al., "Sanity Checks for Saliency Maps" (2018): a map that explains the network changes when
weights are replaced by random ones, from the classifier downwards. Each figure is the rank correlation of the maps
before and after, averaged over the photos: near 1 the map does not depend on these weights, near 0 it does.
"""

import copy
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from cyclopts import App, Parameter
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

import port_a_keras_model as example

import xception_hub
from conversion.convert import convert
from xception_hub.inference.attribution import METHODS, explain
from xception_hub.porting.port import port

PARTS = {'classifier': ('head',), 'exit flow': ('exit_flow',), 'all': ('middle_flow', 'entry_flow', 'stem')}

app = App(help=__doc__, version_flags=[])


def randomised(model: nn.Module, parts: tuple[str, ...]) -> nn.Module:
    """A copy of a model, in some parts of which the values of each tensor are in random order."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.startswith(parts):
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.data = parameter.data.flatten()[order].view(parameter.shape)
    return model


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, averaged over pairs of maps [B, H, W]."""
    ranks = (maps.flatten(1).argsort(1).argsort(1).double() for maps in (one, other))
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks)]).mean())


@app.default
def main(
    *,
    photos: int = 6,
    image_size: int = 150,
    methods: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative='')] = tuple(METHODS),
    model: Path = ROOT / 'build' / 'kitchenware',
) -> None:
    """Prints a row for each method.

    Args:
        photos: Number of photos, at most 18.
        image_size: Height and width of the images in pixels.
        methods: Methods to compare.
        model: Where the converted model is, or is written to.
    """
    checkpoint = example.download()
    if not model.is_dir():
        convert(port(checkpoint.model), model, example.PREPROCESSING, example.CLASS_NAMES, checkpoint.photos[:1])
    network: Any = timm.create_model(f'local-dir:{model}', pretrained=True).eval()
    config = {**timm.data.resolve_data_config(model=network), 'input_size': (3, image_size, image_size)}
    transform = timm.data.create_transform(**config)
    chosen = checkpoint.photos[:: max(1, len(checkpoint.photos) // photos)][:photos]
    images = torch.stack([transform(xception_hub.open_image(photo)) for photo in chosen])
    with torch.inference_mode():
        logits = network(images)
        classes = logits.argmax(1)
        difference = (logits - network(torch.zeros_like(images)))[range(len(images)), classes]
    parts = list(PARTS.values())
    others = {name: randomised(network, sum(parts[: number + 1], ())) for number, name in enumerate(PARTS)}
    print(f'{"":21}{"seconds a photo":>16}{"error of the sum":>18}' + ''.join(f'{name:>12}' for name in PARTS))
    for method in methods:
        start = time.perf_counter()
        maps = explain(network, images, classes, method)
        seconds = (time.perf_counter() - start) / len(images)
        error = (maps.sum((1, 2)) / difference - 1).abs().median()
        row = f'{method:21}{seconds:16.2f}' + (f'{error:18.1e}' if (maps < 0).any() else f'{"-":>18}')
        print(
            row
            + ''.join(f'{rank_correlation(maps, explain(o, images, classes, method)):12.2f}' for o in others.values())
        )


if __name__ == '__main__':
    app()
