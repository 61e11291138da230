"""Heat maps of what made a model choose a class: Grad-CAM and attributions of pixels."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError, SettingsError
from ..layers import MaxPool2dSame
from ..models.build import TimmModel
from .hookable import hookable

Method = Callable[[TimmModel, Tensor, Tensor], Tensor]

STEPS = 64  # of integrated gradients, from the mean colour to the image
BATCH = 16  # images that integrated gradients process at once
VICINITY = 16  # pixels are smoothed over a square whose side is this fraction of the image's shorter side
BRIGHT = 0.995  # quantile of the pixels that is drawn as 1, because a few noisy pixels have much larger values
COMPLETE = 0.01  # largest error of DeepLIFT's sum, as a share of the difference of logits
ROUNDING = 1e-4  # error of logits in float32


def explain(model: Any, images: Tensor, classes: Sequence[int] | Tensor, method: str = 'gradcam') -> Tensor:
    """Computes how much each position of an image adds to the logit of a class.

    'gradcam' computes a class activation map from the last feature maps, enlarged to the image; no value is negative.
    The other methods compute attributions of pixels, summed over the channels: positive values increase the logit,
    negative values decrease it, compared with an image of the mean colour (zeros). Their sum over an image is the
    difference of the two logits, for 'deeplift' up to rounding, for 'integrated-gradients' up to the error of `STEPS`.

    Args:
        model: A timm model in evaluation mode. It is not changed.
        images: Images [B, C, H, W], prepared for the model.
        classes: Number of the explained class for each image, [B].
        method: One of `METHODS`: 'gradcam' (for timm models with feature maps), 'integrated-gradients' (for any model)
            or 'deeplift' (for models whose nonlinearities captum supports). The last two need captum.

    Returns:
        Maps [B, H, W] in logits, on the images' device. `in_unit_range` prepares them for a picture.

    Raises:
        ModelError: The model is in training mode, has no such class, or does not suit the method.
        SettingsError: There is no such method, or captum is not installed.
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
        try:
            return METHODS[method](model, images, classes).detach()
        except ModuleNotFoundError as e:
            raise SettingsError(
                f"The method {method} needs {e.name}: pip install 'xception-hub[explain]', or choose gradcam."
            ) from e


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


def _integrated_gradients(model: TimmModel, images: Tensor, classes: Tensor) -> Tensor:  # [B, H, W]
    from captum.attr import IntegratedGradients

    attribute = IntegratedGradients(model).attribute
    return attribute(images, target=classes, n_steps=STEPS, internal_batch_size=max(BATCH, len(images))).sum(1)


def _deep_lift(model: TimmModel, images: Tensor, classes: Tensor) -> Tensor:  # [B, H, W]
    from captum.attr import DeepLift
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    # captum supports only torch's pooling, and is wrong if overlapping windows share their maximum
    SUPPORTED_NON_LINEAR.update(dict.fromkeys((nn.MaxPool2d, MaxPool2dSame), _rescaled_max_pool))
    with torch.no_grad():
        difference = (model(images) - model(torch.zeros_like(images))).gather(1, classes[:, None]).squeeze(1)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Setting forward, backward hooks')
        maps = DeepLift(hookable(model)).attribute(images.requires_grad_(), target=classes).sum(1)
    gap = (maps.sum((1, 2)) - difference).abs()
    if not (gap <= COMPLETE * difference.abs() + ROUNDING).all():
        raise ModelError(
            f'DeepLIFT is wrong for {type(model).__name__}, which has other nonlinearities than modules of ReLU and '
            f'max pooling: its maps add up to {maps.sum((1, 2)).tolist()}, and the logits differ by '
            f'{difference.tolist()}. Choose the method integrated-gradients.'
        )
    return maps


def _rescaled_max_pool(
    module: nn.Module, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float = 1e-10
) -> Tensor:
    """DeepLIFT's multipliers of max pooling: they attribute the change of an output to the position of its maximum.

    Args:
        module: The pooling.
        inputs: [2 * B, C, H, W]: those of the images, then those of their references.
        outputs: [2 * B, C, h, w].
        grad_input: [2 * B, C, H, W] gradients of the inputs, used where an input equals its reference.
        grad_output: [2 * B, C, h, w] multipliers of the outputs.
        eps: Largest difference between an input and its reference that counts as equal.
    """
    (output, reference), difference = outputs.chunk(2), torch.sub(*inputs.chunk(2))
    larger = torch.maximum(output, reference)
    contributions = grad_output * torch.cat([larger - reference, output - larger])
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        (spread,) = torch.autograd.grad(module.forward(inputs), inputs, contributions)
    multipliers = sum(spread.chunk(2)) / difference
    return torch.where(torch.cat([difference.abs() < eps] * 2), grad_input, torch.cat([multipliers] * 2))


METHODS: dict[str, Method] = {
    'gradcam': _grad_cam,
    'integrated-gradients': _integrated_gradients,
    'deeplift': _deep_lift,
}
