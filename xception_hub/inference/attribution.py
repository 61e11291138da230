"""What in an image spoke for a class, as a map of the image: Grad-CAM and attributions of pixels."""

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

STEPS = 64  # between the mean colour and the image, of integrated gradients
BATCH = 16  # images that integrated gradients compute at once
VICINITY = 16  # parts of an image's shorter side, one of which is the side of a pixel's vicinity
BRIGHT = 0.995  # share of an image's pixels below the value that is drawn as 1: a few noisy pixels are far above it
COMPLETE = 0.01  # largest error of DeepLIFT's sum, as a share of the difference of logits
ROUNDING = 1e-4  # of logits in float32


def explain(model: Any, images: Tensor, classes: Sequence[int] | Tensor, method: str = 'gradcam') -> Tensor:
    """What in each image spoke for a class.

    The class activation maps are those of the last feature maps, enlarged to the image: [H, W] values, none negative.
    The attributions of pixels are sums over the channels: positive values speak for the class, negative ones against
    it, in comparison with an image of the mean colour (zeros). Their sum over an image is the difference of the two
    logits: of 'deeplift' up to rounding, of 'integrated-gradients' up to the error of its `STEPS` steps.

    Args:
        model: A timm model in evaluation mode, which stays as it is.
        images: Images [B, C, H, W], as the model takes them.
        classes: [B] number of the class that is explained, for each image.
        method: One of `METHODS`: 'gradcam' (a class activation map, of any timm model with feature maps),
            'integrated-gradients' (of any model), 'deeplift' (of models whose nonlinearities captum knows). The last
            two need captum.

    Returns:
        [B, H, W] in logits, on the images' device. `in_unit_range` makes a picture of it.

    Raises:
        ModelError: The model is in training mode, has no such class, or nothing that the method can explain.
        SettingsError: There is no such method, or captum is not installed.
    """
    if method not in METHODS:
        raise SettingsError(f'There is no method {method!r}. Choose one of {", ".join(METHODS)}.')
    if model.training:
        raise ModelError('The model is in training mode, in which it sees images as parts of a batch: model.eval().')
    with torch.inference_mode(False), torch.enable_grad():
        images, classes = images.detach().clone(), torch.as_tensor(classes, device=images.device).clone()
        if len(classes) != len(images) or not ((classes >= 0) & (classes < model.num_classes)).all():
            raise ModelError(
                f'The classes are {classes.tolist()}: one of 0 to {model.num_classes - 1} for each of {len(images)} '
                f'images is explained.'
            )
        try:
            return METHODS[method](model, images, classes).detach()
        except ModuleNotFoundError as e:
            raise SettingsError(
                f"The method {method} needs {e.name}: pip install 'xception-hub[explain]', or choose gradcam."
            ) from e


def in_unit_range(maps: Tensor, together: bool = False) -> Tensor:
    """What speaks for the class [B, H, W], from 0 for nothing to 1 for the largest values.

    Single pixels say little, and those for and against a class lie side by side: a value is the mean of its vicinity.

    Args:
        maps: [B, H, W] as of `explain`.
        together: Whether the maps have one scale, as those of several classes of an image, or each its own.
    """
    side = min(maps.shape[1:]) // VICINITY // 2 * 2 + 1
    means = F.avg_pool2d(maps.float()[:, None], side, 1, side // 2, count_include_pad=False).squeeze(1)
    positive = means.clamp(min=0).reshape(1 if together else len(maps), -1)
    largest = positive.kthvalue(math.ceil(BRIGHT * positive.shape[1]), 1).values
    largest = torch.where(largest > 0, largest, positive.amax(1)).clamp(min=torch.finfo(positive.dtype).tiny)
    return (positive / largest[:, None]).clamp(max=1).reshape(maps.shape)


def _grad_cam(model: TimmModel, images: Tensor, classes: Tensor) -> Tensor:
    """A map of the last features [B, C, h, w], enlarged. Only the head is differentiated: it costs one prediction."""
    with torch.no_grad():
        features = model.forward_features(images)
    shape = list(getattr(features, 'shape', []))
    if len(shape) != 4 or model.num_features not in (shape[1], shape[3]):
        raise ModelError(
            f'{type(model).__name__} has no feature maps [batch, {model.num_features}, height, width] before its head, '
            f'but {shape or type(features).__name__}. Explain it by the method integrated-gradients.'
        )
    features.requires_grad_()
    logits = model.forward_head(features.clone())  # heads begin with activations in place
    (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    if shape[1] != model.num_features:  # the channels come last, as in Swin
        features, gradients = features.permute(0, 3, 1, 2), gradients.permute(0, 3, 1, 2)
    maps = (gradients.mean((2, 3), True) * features).sum(1, keepdim=True).relu()
    return F.interpolate(maps, images.shape[2:], mode='bilinear').squeeze(1)


def _integrated_gradients(model: TimmModel, images: Tensor, classes: Tensor) -> Tensor:
    from captum.attr import IntegratedGradients

    attribute = IntegratedGradients(model).attribute
    return attribute(images, target=classes, n_steps=STEPS, internal_batch_size=max(BATCH, len(images))).sum(1)


def _deep_lift(model: TimmModel, images: Tensor, classes: Tensor) -> Tensor:
    from captum.attr import DeepLift
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    # captum knows no pooling but torch's, and of windows that overlap it keeps one where several share their maximum
    SUPPORTED_NON_LINEAR.update(dict.fromkeys((nn.MaxPool2d, MaxPool2dSame), _rescaled_max_pool))
    with torch.no_grad():
        difference = (model(images) - model(torch.zeros_like(images))).gather(1, classes[:, None]).squeeze(1)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Setting forward, backward hooks')
        maps = DeepLift(hookable(model)).attribute(images.requires_grad_(), target=classes).sum(1)
    gap = (maps.sum((1, 2)) - difference).abs()
    if not (gap <= COMPLETE * difference.abs() + ROUNDING).all():
        raise ModelError(
            f'DeepLIFT does not hold for {type(model).__name__}, which has nonlinearities beside modules of ReLU and '
            f'max pooling: it attributes {maps.sum((1, 2)).tolist()} where the logits differ by {difference.tolist()}. '
            f'Explain it by the method integrated-gradients.'
        )
    return maps


def _rescaled_max_pool(
    module: nn.Module, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float = 1e-10
) -> Tensor:
    """DeepLIFT's multipliers of max pooling: what an output exceeds its reference by is due to where the maximum is.

    Args:
        module: The pooling.
        inputs: [2 * B, C, H, W]: those of the images, then those of their references.
        outputs: [2 * B, C, h, w].
        grad_input: Gradients of the inputs, which hold where an input is that of its reference.
        grad_output: Multipliers of the outputs.
        eps: Difference between an input and its reference below which they are the same.
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
