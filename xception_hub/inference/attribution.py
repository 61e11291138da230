"""Heat maps of what made a model choose a class: Grad-CAM and attributions of pixels."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError, SettingsError
from ..models.build import TimmModel

Method = Callable[[TimmModel, Tensor, Tensor], Tensor]

STEPS = 64  # of integrated gradients, from the mean colour to the image
VICINITY = 16  # pixels are smoothed over a square whose side is this fraction of the image's shorter side
BRIGHT = 0.995  # quantile of the pixels that is drawn as 1, because a few noisy pixels have much larger values


def explain(model: Any, images: Tensor, classes: Sequence[int] | Tensor, method: str = 'gradcam') -> Tensor:
    """Computes how much each position of an image adds to the logit of a class.

    'gradcam' computes a class activation map from the last feature maps, enlarged to the image; no value is negative.
    'integrated-gradients' computes attributions of pixels, summed over the channels: positive values increase the
    logit, negative values decrease it, compared with an image of the mean colour (zeros). Their sum over an image is
    the difference of the two logits, up to the error of `STEPS`.

    Args:
        model: A timm model in evaluation mode. It is not changed.
        images: Images [B, C, H, W], prepared for the model.
        classes: Number of the explained class for each image, [B].
        method: One of `METHODS`: 'gradcam' (for timm models with feature maps) or 'integrated-gradients' (for any).

    Returns:
        Maps [B, H, W] in logits, on the images' device. `in_unit_range` prepares them for a picture.

    Raises:
        ModelError: The model is in training mode, has no such class, or does not suit the method.
        SettingsError: There is no such method.
    """
    if method not in METHODS:
        raise SettingsError(f'There is no method {method!r}. Choose one of {", ".join(METHODS)}.')
    if model.training:
        raise ModelError('The model is in training mode, where its outputs depend on the batch: call model.eval().')
    with torch.inference_mode(False), torch.enable_grad():
        images, classes = images.detach().clone(), torch.as_tensor(classes, device=images.device).clone()
        if len(classes) != len(images) or not ((classes >= 0) & (classes < model.num_classes)).all():
            raise ModelError(
                f'The classes are {classes.tolist()}. Pass one number from 0 to {model.num_classes - 1} for each of '
                f'the {len(images)} images.'
            )
        return METHODS[method](model, images, classes).detach()


def in_unit_range(maps: Tensor, together: bool = False) -> Tensor:
    """Smooths maps and scales their positive values to [0, 1], [B, H, W]; negative values become 0.

    Single pixels are noisy, with positive and negative values side by side, so each value is the mean of a square.

    Args:
        maps: [B, H, W] from `explain`.
        together: Whether all maps share one scale, for several classes of an image, or each has its own.
    """
    side = min(maps.shape[1:]) // VICINITY // 2 * 2 + 1
    means = F.avg_pool2d(maps.float()[:, None], side, 1, side // 2, count_include_pad=False).squeeze(1)
    positive = means.clamp(min=0).reshape(1 if together else len(maps), -1)
    largest = positive.kthvalue(math.ceil(BRIGHT * positive.shape[1]), 1).values
    largest = torch.where(largest > 0, largest, positive.amax(1)).clamp(min=torch.finfo(positive.dtype).tiny)
    return (positive / largest[:, None]).clamp(max=1).reshape(maps.shape)


def _grad_cam(model: TimmModel, images: Tensor, classes: Tensor) -> Tensor:
    """Maps [B, H, W] from the last features [B, C, h, w]. Only the head is differentiated, so it costs a prediction."""
    with torch.no_grad():
        features = model.forward_features(images)
    shape = list(getattr(features, 'shape', []))
    if len(shape) != 4 or model.num_features not in (shape[1], shape[3]):
        raise ModelError(
            f'{type(model).__name__} has no feature maps [batch, {model.num_features}, height, width] before its head, '
            f'but {shape or type(features).__name__}. Choose the method integrated-gradients.'
        )
    features.requires_grad_()
    logits = model.forward_head(features.clone())  # because heads begin with in-place activations
    (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    if shape[1] != model.num_features:  # the channels come last, as in Swin
        features, gradients = features.permute(0, 3, 1, 2), gradients.permute(0, 3, 1, 2)
    maps = (gradients.mean((2, 3), True) * features).sum(1, keepdim=True).relu()
    return F.interpolate(maps, images.shape[2:], mode='bilinear').squeeze(1)


def _integrated_gradients(model: TimmModel, images: Tensor, classes: Tensor) -> Tensor:
    """Maps [B, H, W]: the mean gradient on the line from zeros to the image, by Gauss-Legendre, times the image."""
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    total = torch.zeros_like(images)
    for share, weight in zip((nodes + 1) / 2, weights / 2):
        x = (images * share).requires_grad_()
        (gradients,) = torch.autograd.grad(model(x).gather(1, classes[:, None]).sum(), x)
        total += weight * gradients
    return (total * images).sum(1)


METHODS: dict[str, Method] = {'gradcam': _grad_cam, 'integrated-gradients': _integrated_gradients}
