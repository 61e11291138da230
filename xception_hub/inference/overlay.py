"""Draws heat maps as colours over the pixels of the network's input."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

COLOURS = 'viridis'  # increases in lightness, also in grey print and for colour-blind readers
STRENGTH = 0.6  # share of the colour in a pixel; the rest is the photo in grey
PANEL = 2.6  # inches of the longer side of each picture
DPI = 150


def seen(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Converts the network's input [3, H, W] (a resized and cropped photo) back into a picture."""
    offset, scale = (torch.tensor(values, device=image.device)[:, None, None] for values in (mean, std))
    pixels = (image * scale + offset).clamp(0, 1) * 255
    return Image.fromarray(pixels.round().byte().permute(1, 2, 0).cpu().numpy())


def overlay(photo: Image.Image, heat: Tensor) -> Image.Image:
    """Draws a map in colours over a photo in grey.

    Args:
        photo: Photo in RGB, of W x H pixels.
        heat: [H, W] in 0..1, see `attribution.in_unit_range`.
    """
    from matplotlib import colormaps

    grey = np.asarray(photo.convert('L'))[..., None] / 255
    colour = colormaps[COLOURS](heat.cpu().numpy())[..., :3]
    return Image.fromarray(((STRENGTH * colour + (1 - STRENGTH) * grey) * 255).round().astype(np.uint8))


def sheet(photo: Image.Image, overlays: Sequence[tuple[str, Image.Image]], title: str) -> Any:
    """Draws a photo and the overlays of some classes side by side, with a colour bar.

    Args:
        photo: The network's input as a picture.
        overlays: Title and picture of each class.
        title: Title of the photo.

    Returns:
        A figure of Matplotlib.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    panels = [(title, photo), *overlays]
    width, height = (PANEL * side / max(photo.size) for side in photo.size)
    figure = Figure(figsize=(len(panels) * (width + 0.1) + 0.9, height + 0.55), dpi=DPI, layout='constrained')
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (text, picture) in zip(every, panels):
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(text, fontsize=9, parse_math=False)
    bar = figure.colorbar(ScalarMappable(cmap=COLOURS), ax=list(every), ticks=[0, 1], aspect=15, pad=0.01)
    bar.ax.set_yticklabels(['nothing', 'most'], fontsize=9)
    return figure
