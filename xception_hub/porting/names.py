"""The one name table: Keras' name of each layer of Xception, this network's, and the axes between them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    'AUGMENTATIONS',
    'KERAS_CLASSES',
    'KINDS',
    'LAYERS',
    'KerasLayer',
    'group_name',
    'keras_shape',
    'to_keras',
    'to_torch',
]

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
}

# Kind of layer -> its class in Keras 2 and 3.
KERAS_CLASSES = {'conv': 'Conv2D', 'sepconv': 'SeparableConv2D', 'bn': 'BatchNormalization', 'dense': 'Dense'}

# Layers that do nothing outside of training.
AUGMENTATIONS = (
    'RandomFlip',
    'RandomRotation',
    'RandomZoom',
    'RandomContrast',
    'RandomBrightness',
    'RandomTranslation',
    'RandomShear',
    'RandomHue',
    'RandomSaturation',
    'RandomColorJitter',
    'RandomColorDegeneration',
    'RandomGrayscale',
    'RandomPosterization',
    'RandomSharpness',
    'RandomErasing',
    'RandomGaussianBlur',
    'RandomInvert',
    'RandomPerspective',
    'RandomElasticTransform',
    'GaussianNoise',
    'GaussianDropout',
    'AlphaDropout',
)


def group_name(class_name: str) -> str:
    """What Keras calls the groups of a class, and the layers that it names itself."""
    return re.sub(r'(?<=[a-z])(?=[A-Z])', '_', class_name).lower()


# Keras 1 numbered its layers and called them so.
KERAS1_NAMES = {'conv': 'convolution2d', 'sepconv': 'separableconvolution2d', 'bn': 'batchnormalization'}


@dataclass(frozen=True)
class KerasLayer:
    """One layer with weights.

    Attributes:
        keras: Its name in Keras 2 and 3. Keras leaves the residual layers unnamed; here they are
            'block2_residual_conv' and so on, and the reader finds them by the graph.
        torch: Its name in `xception_hub.Xception`.
        kind: A key of `KINDS`.
        keras1: Its name in the official weight files, which Keras 1 wrote.
    """

    keras: str
    torch: str
    kind: str
    keras1: str


def _layers() -> Iterator[tuple[str, str, str]]:
    """Keras' name, ours and kind of all layers of the backbone, in the order in which Keras creates them."""
    for i in (1, 2):
        yield f'block1_conv{i}', f'stem.conv{i}', 'conv'
        yield f'block1_conv{i}_bn', f'stem.bn{i}', 'bn'
    modules = [(2, 'entry_flow.0'), (3, 'entry_flow.1'), (4, 'entry_flow.2')]
    modules += [(block, f'middle_flow.{block - 5}') for block in range(5, 13)]
    modules += [(13, 'exit_flow.0'), (14, 'exit_flow.1')]
    for block, module in modules:
        if block in (2, 3, 4, 13):
            yield f'block{block}_residual_conv', f'{module}.shortcut.conv', 'conv'
            yield f'block{block}_residual_bn', f'{module}.shortcut.bn', 'bn'
        for i in range(1, 4 if 5 <= block <= 12 else 3):
            yield f'block{block}_sepconv{i}', f'{module}.stack.conv{i}', 'sepconv'
            yield f'block{block}_sepconv{i}_bn', f'{module}.stack.bn{i}', 'bn'


def _numbered() -> Iterator[KerasLayer]:
    counts = dict.fromkeys(KERAS1_NAMES, 0)
    for keras, torch_name, kind in _layers():
        counts[kind] += 1
        yield KerasLayer(keras, torch_name, kind, f'{KERAS1_NAMES[kind]}_{counts[kind]}')


def _place_in_list(name: str) -> tuple[int, int]:
    block, _, rest = name.removeprefix('block').partition('_')
    numbered = [digit for digit in rest if digit.isdigit()]
    return int(block), int(numbered[0]) if numbered else 9


LAYERS: dict[str, KerasLayer] = {layer.keras: layer for layer in _numbered()}
assert len(LAYERS) == 80 and sum(len(KINDS[layer.kind]) for layer in LAYERS.values()) == 234

# The order in which Keras lists its layers, and counts the groups of those that it saves without a name: as above, but
# residual normalizations come after those that they are computed before.
LISTED: dict[str, list[str]] = {
    kind: sorted((name for name, layer in LAYERS.items() if layer.kind == kind), key=_place_in_list)
    for kind in KERAS1_NAMES
}

PREDICTIONS = KerasLayer('predictions', 'head.fc', 'dense', 'dense_2')


def keras_shape(torch_shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in Keras of an array whose torch shape is known."""
    shape = [0] * len(axes)
    for torch_axis, keras_axis in enumerate(axes):
        shape[keras_axis] = torch_shape[torch_axis]
    return tuple(shape)


def to_torch(layer: KerasLayer, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """A layer's arrays by Keras' names -> tensors by ours."""
    return {
        f'{layer.torch}.{torch_name}': torch.from_numpy(np.ascontiguousarray(arrays[keras_name].transpose(axes)))
        for keras_name, torch_name, axes in KINDS[layer.kind]
    }


def to_keras(layer: KerasLayer, tensors: Mapping[str, Tensor]) -> list[np.ndarray]:
    """The same table read backwards: tensors by this network's names -> a layer's arrays in Keras' order."""
    return [
        np.ascontiguousarray(tensors[f'{layer.torch}.{torch_name}'].detach().cpu().numpy().transpose(np.argsort(axes)))
        for _, torch_name, axes in KINDS[layer.kind]
    ]
