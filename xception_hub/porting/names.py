"""The one name table: Keras' name of each layer of Xception, this network's, and the axes between them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import topology

# Kind of layer -> its arrays in Keras' order: Keras' name, ours, and which axis of Keras each axis of torch is.
KINDS: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {
    'conv': [('kernel', 'weight', (3, 2, 0, 1))],  # H W I O -> O I H W
    'sepconv': [
        ('depthwise_kernel', 'conv_dw.weight', (2, 3, 0, 1)),  # H W C 1 -> C 1 H W
        ('pointwise_kernel', 'conv_pw.weight', (3, 2, 0, 1)),  # 1 1 I O -> O I 1 1
    ],
    'bn': [
        ('gamma', 'weight', (0,)),
        ('beta', 'bias', (0,)),
        ('moving_mean', 'running_mean', (0,)),
        ('moving_variance', 'running_var', (0,)),
    ],
    'dense': [('kernel', 'weight', (1, 0)), ('bias', 'bias', (0,))],  # I O -> O I
    'dense without bias': [('kernel', 'weight', (1, 0))],
    # of images, which becomes part of their preparation
    'normalization': [('mean', 'mean', (0,)), ('variance', 'variance', (0,)), ('count', 'count', ())],
}

# Kind of layer -> its class in Keras 2 and 3.
KERAS_CLASSES = {'conv': 'Conv2D', 'sepconv': 'SeparableConv2D', 'bn': 'BatchNormalization', 'dense': 'Dense'}

# Layers that change nothing outside of training: those of images, for which Keras 3 records training=True, and others.
# fmt: off
IMAGE_AUGMENTATIONS = (
    'RandomFlip', 'RandomRotation', 'RandomZoom', 'RandomContrast', 'RandomBrightness', 'RandomTranslation',
    'RandomShear', 'RandomHue', 'RandomSaturation', 'RandomColorJitter', 'RandomColorDegeneration',
    'RandomGrayscale', 'RandomPosterization', 'RandomSharpness', 'RandomErasing', 'RandomGaussianBlur',
    'RandomInvert', 'RandomPerspective', 'RandomElasticTransform', 'RandomHeight', 'RandomWidth', 'RandAugment',
    'AugMix', 'MixUp', 'CutMix', 'Solarization',
)
AUGMENTATIONS = (
    *IMAGE_AUGMENTATIONS, 'GaussianNoise', 'GaussianDropout', 'AlphaDropout', 'SpatialDropout2D',
    'ActivityRegularization', 'Identity',
)
# fmt: on


def group_name(class_name: str) -> str:
    """What Keras calls the groups of a class, and the layers that it names itself."""
    return re.sub(r'(?<=[a-z])(?=[A-Z])', '_', class_name).lower()


def numbered(name: str) -> tuple[str, int]:
    """'conv2d_4' -> 'conv2d', 4; 'conv2d' -> 'conv2d', 0."""
    stem, number = re.fullmatch(r'(.*?)(?:_(\d{1,9}))?', name, re.DOTALL).groups()  # type: ignore[union-attr]
    return stem, int(number or 0)


def numbers_of(name: str) -> list[int]:
    """The numbers at the end of a name: that of the layer, and one if its model was built again."""
    return [int(number) for number in re.findall(r'_(\d{1,9})(?=_\d|$)', name)]


# Keras 1 numbered its layers and called them so.
KERAS1_NAMES = {'conv': 'convolution2d', 'sepconv': 'separableconvolution2d', 'bn': 'batchnormalization'}


class KerasLayer(NamedTuple):
    """One layer with weights.

    Attributes:
        keras: Name in Keras 2 and 3, see `xception_hub.topology.Layer`.
        torch: Name in `xception_hub.Xception`.
        kind: A key of `KINDS`.
    """

    keras: str
    torch: str
    kind: str


LAYERS = {layer.keras: KerasLayer(layer.keras, layer.torch, layer.kind) for layer in topology.LAYERS}


def keras_shape(torch_shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in Keras of an array whose torch shape is known."""
    shape = [0] * len(axes)
    for torch_axis, keras_axis in enumerate(axes):
        shape[keras_axis] = torch_shape[torch_axis]
    return tuple(shape)


def to_torch(layer: KerasLayer, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """A layer's arrays by Keras' names -> tensors by ours, in the shapes that `KINDS` states for both."""
    return {
        f'{layer.torch}.{torch_name}': torch.from_numpy(np.ascontiguousarray(arrays[keras_name].transpose(axes)))
        for keras_name, torch_name, axes in KINDS[layer.kind]
    }


def to_keras(layer: KerasLayer, tensors: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Tensors by this network's names -> a layer's arrays in Keras' order and shapes; `KINDS` read backwards."""
    return [
        np.ascontiguousarray(tensors[f'{layer.torch}.{torch_name}'].detach().cpu().numpy().transpose(np.argsort(axes)))
        for _, torch_name, axes in KINDS[layer.kind]
    ]
