"""Where each layer's arrays are in a weight file, for each of the three layouts that Keras has had.

Keras 1                  convolution2d_1/convolution2d_1_W:0
Keras 2                  xception/block1_conv1/kernel:0         below model_weights/ in a whole model
Keras 3, tf_keras' v3    layers/functional/layers/conv2d/vars/0
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from ..errors import KerasFileError
from .names import AUGMENTATIONS, KERAS_CLASSES, KINDS, LAYERS, PREDICTIONS, KerasLayer, group_name
from .weights import WeightFile


@dataclass(frozen=True)
class FileLayer:
    """A layer of a Keras file, and where its arrays are.

    Attributes:
        name: Name of the layer; None if the file does not say it.
        class_name: Keras' name of the layer's class, or the file's abbreviation if the class is not known here.
        path: Path of the layer's group in the layout since Keras 3.
        top: Layer of the outermost model that the layer is or is in. Keras 2 names the group of arrays after it.
        config: The layer's arguments; empty for weights alone.
        inbound: Names of the layers that feed the layer.
        constants: Numbers that the layer is called with.
    """

    name: str | None
    class_name: str
    path: str = ''
    top: str = ''
    config: dict[str, Any] = field(default_factory=dict)
    inbound: tuple[str, ...] = ()
    constants: tuple[float, ...] = ()


class Layout(ABC):
    """Finds the arrays of layers in one file."""

    def __init__(self, weights: WeightFile) -> None:
        self.weights = weights

    @abstractmethod
    def layers(self) -> list[FileLayer]:
        """Lists the layers that the file names, in Keras' order. It is used for weights that come without a config."""

    @abstractmethod
    def paths(self, layer: FileLayer, kind: str) -> dict[str, str]:
        """Maps Keras' names of a layer's arrays to their paths, which need not exist.

        Raises:
            KerasFileError: The group at the layer's place belongs to another layer.
        """


def layout_of(weights: WeightFile) -> Layout:
    """Recognises the layout by its groups."""
    if PREFIX in weights or OLD_PREFIX in weights:
        return VarsLayout(weights)
    return Keras1Layout(weights) if next(iter(LAYERS.values())).keras1 in weights else NamedLayout(weights)


# Names of the classes that Keras abbreviates in its groups and in the names it gives.
CLASSES = {
    group_name(name): name
    for name in (
        *KERAS_CLASSES.values(),
        *AUGMENTATIONS,
        'InputLayer',
        'Activation',
        'ReLU',
        'Softmax',
        'MaxPooling2D',
        'Add',
        'Dropout',
        'Flatten',
        'GlobalAveragePooling2D',
        'GlobalMaxPooling2D',
        'Functional',
        'Sequential',
        'Rescaling',
    )
} | {'input': 'InputLayer', 'avg_pool': 'GlobalAveragePooling2D', 'max_pool': 'GlobalMaxPooling2D'}


def numbered(name: str) -> tuple[str, int]:
    """'conv2d_4' -> 'conv2d', 4; 'conv2d' -> 'conv2d', 0."""
    stem, number = re.fullmatch(r'(.*?)(?:_(\d{1,9}))?', name, re.DOTALL).groups()  # type: ignore[union-attr]
    return stem, int(number or 0)


PREFIX, OLD_PREFIX = 'layers', '_layer_checkpoint_dependencies'  # TensorFlow 2.12 and 2.13 used the second


class VarsLayout(Layout):
    """The layout since Keras 3: groups numbered by class, arrays numbered within. Keras 3.6 adds the layer's name."""

    def __init__(self, weights: WeightFile) -> None:
        super().__init__(weights)
        self.prefix = PREFIX if PREFIX in weights else OLD_PREFIX

    def layers(self) -> list[FileLayer]:
        found = []
        for group in self.weights.groups():
            parent, _, last = group.removesuffix('/vars').rpartition('/')
            if group.endswith('/vars') and parent.endswith(self.prefix):
                stem, number = numbered(last)
                name = self.weights.attribute(group, 'name')
                path = f'{parent}/{last}'.replace(OLD_PREFIX, PREFIX)
                found.append(((parent, stem, number), FileLayer(name, CLASSES.get(stem, stem), path)))
        return [layer for _, layer in sorted(found, key=lambda item: item[0])]

    def paths(self, layer: FileLayer, kind: str) -> dict[str, str]:
        group = layer.path.replace(PREFIX, self.prefix) + '/vars'
        saved_name = self.weights.attribute(group, 'name')
        if layer.name is not None and saved_name not in (None, layer.name):
            raise KerasFileError(f'{self.weights.source}: {group!r} is called {saved_name!r}, not {layer.name!r}.')
        return {keras: f'{group}/{i}' for i, (keras, _, _) in enumerate(KINDS[kind])}


WHOLE_MODEL = 'model_weights'
NO_LAYERS = ('top_level_model_weights', 'optimizer_weights')


class NamedLayout(Layout):
    """The layout of Keras 2: a group for each layer of the outermost model, with arrays under their layers' names.

    The order of a nested model's arrays depends on which of its layers are frozen, so it is not looked at.
    """

    def __init__(self, weights: WeightFile) -> None:
        super().__init__(weights)
        self.root = f'{WHOLE_MODEL}/' if WHOLE_MODEL in weights else ''
        self._index: dict[tuple[str, str, str], str] = {}
        for path in weights.arrays():
            parts = path.removeprefix(self.root).split('/')
            if path.startswith(self.root) and len(parts) > 1 and parts[0] not in NO_LAYERS:
                key = parts[0], parts[-2], parts[-1].removesuffix(':0')
                if key in self._index:
                    raise KerasFileError(f'{weights.source}: {path!r} and {self._index[key]!r} have the same name.')
                self._index[key] = path

    def layers(self) -> list[FileLayer]:
        found: dict[tuple[str, str], list[str]] = {}
        for top, layer, variable in self._index:
            found.setdefault((top, layer), []).append(variable)
        layers = [FileLayer(layer, self._class_of(top, layer, names), top=top) for (top, layer), names in found.items()]
        known = {*(top for top, _ in found), *NO_LAYERS}
        for group in self.weights.groups():
            top = group.removeprefix(self.root)
            if group.startswith(self.root) and top and '/' not in top and top not in known:
                stem = numbered(top)[0]
                layers.append(FileLayer(top, CLASSES.get(stem, stem), top=top))
        return sorted(layers, key=lambda layer: numbered(layer.name or ''))

    def _class_of(self, top: str, layer: str, variables: list[str]) -> str:
        if 'depthwise_kernel' in variables:
            return 'SeparableConv2D'
        if 'moving_mean' in variables:
            return 'BatchNormalization'
        if 'kernel' in variables:
            return 'Conv2D' if len(self.weights.shape(self._index[top, layer, 'kernel'])) == 4 else 'Dense'
        return layer

    def paths(self, layer: FileLayer, kind: str) -> dict[str, str]:
        missing = f'{self.root}{layer.top}/{layer.name}'
        return {
            keras: self._index.get((layer.top, layer.name or '', keras), f'{missing}/{keras}')
            for keras, _, _ in KINDS[kind]
        }


# Keras 1 called the variance `running_std`, but its values are variances.
KERAS1_VARIABLES = {'kernel': 'W', 'bias': 'b', 'moving_mean': 'running_mean', 'moving_variance': 'running_std'}


class Keras1Layout(Layout):
    """The layout of the two files that Keras publishes: layers are numbered by kind, in the order of creation."""

    def layers(self) -> list[FileLayer]:
        top = [PREDICTIONS] if PREDICTIONS.keras1 in self.weights else []
        pool = [FileLayer('avg_pool', 'GlobalAveragePooling2D')] if top else []
        return [*(self._placed(layer) for layer in [*LAYERS.values(), *top]), *pool]

    def _placed(self, layer: KerasLayer) -> FileLayer:
        return FileLayer(layer.keras, KERAS_CLASSES[layer.kind], top=layer.keras1)

    def paths(self, layer: FileLayer, kind: str) -> dict[str, str]:
        return {keras: f'{layer.top}/{layer.top}_{KERAS1_VARIABLES.get(keras, keras)}:0' for keras, _, _ in KINDS[kind]}
