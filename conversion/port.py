"""A Keras file becomes an Xception: every array it holds is used exactly once, or listed with the reason why not."""
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import timm
from torch import Tensor

from xception_hub import Xception
from xception_hub.checkpoints import check_against

from .archive import open_archive
from .hdf5 import KerasFileError, WeightFile
from .names import KINDS, LAYERS, PREDICTIONS, Layer, keras_shape, to_torch
from .structure import Dense, Structure, parse

__all__ = ['KerasFileError', 'Port', 'head_layers', 'port', 'read_layers']

# Arrays that are not the network's, by a part of their path.
LEFT_OUT = {'optimizer/': "the optimizer's state", 'seed_generator': 'the state of a random generator'}


@dataclass
class Port:
    """An Xception read from a Keras file.

    Attributes:
        source: The file.
        sha256: Of the file.
        tensors: Under this network's names.
        model_args: Arguments of `timm.create_model('xception_paper', ...)`.
        image_size: Height and width that the file says, in pixels.
        final_activation: What Keras applies to the logits, which is left to the user of the network.
        left_out: Array in the file -> why it isn't used.
        keras_version: That wrote the file, if it says so.
        is_release: The file is one of the two that Keras publishes, or has their layout.
    """

    source: Path
    sha256: str
    tensors: dict[str, Tensor]
    model_args: dict[str, Any]
    image_size: tuple[int, int] | None = None
    final_activation: str = 'linear'
    left_out: dict[str, str] = field(default_factory=dict)
    keras_version: str = 'unknown'
    is_release: bool = False

    def model(self) -> Xception:
        """The network with its weights, in evaluation mode."""
        model = timm.create_model('xception_paper', **self.model_args)
        check_against(self.tensors, model.state_dict(), str(self.source))
        model.load_state_dict(self.tensors)
        return model.eval()


def port(source: Path) -> Port:
    """Reads a `.keras` archive or the official weights (`xception_weights_tf_dim_ordering_tf_kernels[_notop].h5`).

    Raises:
        KerasFileError: The file is missing, damaged, unsafe, no Xception, or holds arrays that it has no place for.
    """
    if not source.is_file():
        raise KerasFileError(f'There is no file {source}.')
    if source.suffix == '.keras':
        return _port_archive(source)
    if source.suffix == '.h5':
        return _port_release(source)
    raise KerasFileError(f'{source} ends in {source.suffix!r}; .keras archives and the official .h5 can be converted.')


def _port_archive(source: Path) -> Port:
    with open_archive(source) as (metadata, config, weights):
        structure = parse(config, str(source))
        tensors, model_args, left_out = read_layers(structure, weights)
        return Port(
            source, _sha256(source), tensors, model_args, structure.image_size, structure.final_activation,
            left_out, str(metadata.get('keras_version', 'unknown')))


def read_layers(
        structure: Structure, weights: WeightFile,
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Reads the arrays of a model whose config is known, in the layout that Keras 3 saves.

    Returns:
        Tensors under this network's names, the network's arguments, and array -> why it isn't used.
    """
    widths = [dense.units for dense in structure.dense]
    model_args: dict[str, Any] = dict(
        num_classes=widths[-1] if widths else 0, in_chans=structure.channels,
        global_pool=structure.global_pool or 'avg', fc_widths=widths[:-1], drop_rate=structure.drop_rate)
    reader = _Reader(weights, Xception(**model_args, device='meta').state_dict())
    tensors: dict[str, Tensor] = {}
    placed = [(LAYERS[name], layer) for name, layer in structure.layers.items()]
    placed += [(layer, dense.layer) for layer, dense in zip(head_layers(structure.dense), structure.dense)]
    for layer, place in placed:
        saved_name = weights.attribute(f'{place.path}/vars', 'name')
        if saved_name not in (None, place.name):
            raise KerasFileError(f'{weights.source}: {place.path!r} is called {saved_name!r}, not {place.name!r}.')
        paths = {keras: f'{place.path}/vars/{i}' for i, (keras, _, _) in enumerate(KINDS[layer.kind])}
        tensors.update(reader.read(layer, paths))
    return tensors, model_args, reader.left_out()


def _port_release(source: Path) -> Port:
    try:
        with h5py.File(source, 'r') as file:
            weights = WeightFile(file, source)
            if 'convolution2d_1' not in weights:
                raise KerasFileError(
                    f"{source} is not Keras' official release: it has no group 'convolution2d_1'. "
                    f'Load it in Keras 3 and save it as a .keras archive.')
            top = PREDICTIONS.keras1 in weights
            num_classes = weights.shape(_keras1_paths(PREDICTIONS)['kernel'])[-1] if top else 0
            model_args: dict[str, Any] = dict(num_classes=num_classes)
            reader = _Reader(weights, Xception(**model_args, device='meta').state_dict())
            tensors: dict[str, Tensor] = {}
            for layer in [*LAYERS.values(), *([PREDICTIONS] if top else [])]:
                tensors.update(reader.read(layer, _keras1_paths(layer)))
            activation = 'softmax' if top else 'linear'
            return Port(
                source, _sha256(source), tensors, model_args, (299, 299), activation,
                reader.left_out(), '1', is_release=True)
    except OSError as e:
        raise KerasFileError(f'{source} is not a complete HDF5 file ({e}). Download it again.') from e


# Keras 1 called the variance a standard deviation, and what it kept is the variance.
KERAS1_VARIABLES = {
    'kernel': 'W', 'bias': 'b', 'moving_mean': 'running_mean', 'moving_variance': 'running_std'}


def _keras1_paths(layer: Layer) -> dict[str, str]:
    return {
        keras: f'{layer.keras1}/{layer.keras1}_{KERAS1_VARIABLES.get(keras, keras)}:0'
        for keras, _, _ in KINDS[layer.kind]}


def head_layers(dense: list[Dense]) -> list[Layer]:
    """Fully connected layers of this network for the Dense layers of a file, the last of which is the classifier."""
    names = [f'head.fc_layers.fc{i}' for i in range(1, len(dense))] + ['head.fc'][:len(dense)]
    return [Layer(d.layer.name, name, 'dense', d.layer.name) for name, d in zip(names, dense)]


class _Reader:
    """Reads layers and keeps account of the file's arrays."""

    def __init__(self, file: WeightFile, expected: dict[str, Tensor]) -> None:
        self.file = file
        self.expected = expected
        self.used: dict[str, str] = {}

    def read(self, layer: Layer, paths: dict[str, str]) -> dict[str, Tensor]:
        """A layer's arrays, given the path of each by Keras' name, as tensors under this network's names."""
        arrays = {}
        for keras, torch_name, axes in KINDS[layer.kind]:
            path = paths[keras]
            if path in self.used:
                raise KerasFileError(f'{self.file.source}: {path!r} would be both {self.used[path]} and {layer.torch}.')
            self.used[path] = layer.torch
            shape = keras_shape(tuple(self.expected[f'{layer.torch}.{torch_name}'].shape), axes)
            arrays[keras] = self.file.read(path, shape)
        return to_torch(layer, arrays)

    def left_out(self) -> dict[str, str]:
        """Array -> why it isn't used; raises if there is no reason."""
        unused = [path for path in self.file.arrays() if path not in self.used]
        reasons = {path: next((why for part, why in LEFT_OUT.items() if part in path), '') for path in unused}
        unknown = [path for path, reason in reasons.items() if not reason]
        if unknown:
            raise KerasFileError(
                f'{self.file.source} holds {len(unknown)} arrays that Xception has no place for: '
                f'{", ".join(unknown[:6])}. '
                f'Used were {len(self.used)} arrays, from {next(iter(self.used))} on.')
        return reasons


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
