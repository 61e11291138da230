"""A Keras file becomes an Xception: every array it holds is used exactly once, or listed with the reason why not.

source -> formats.open_source -> config? -> structure -> layouts: path of each array -> checked, then read
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from .. import Xception
from ..errors import KerasFileError, listed
from ..files import sha256_of
from ..weights.checkpoints import check_against
from .array_places import GroupsLayout, Layout, layout_of
from .formats import open_source, read_json
from .graph import FileLayer, all_layers
from .keras_head import MAX_CHANNELS, MAX_UNITS, normalized, rescaling_of
from .layer_settings import Refused, refusals_of
from .names import KINDS, LAYERS, KerasLayer, keras_shape, to_torch
from .preset import read_preset
from .release import RELEASES, fetch
from .structure import Structure, bare, parse
from .weight_file import WeightFile

# Arrays that are not the network's: what their paths match, and what they are.
LEFT_OUT = {
    r'optimizer(_weights)?/': "the optimizer's state",
    r'metrics/': 'the state of a metric',
    r'.*(seed_generator|StateVar)': 'the state of a random generator',
}
OTHER_OUTPUT = 'of another output'

MAX_PARAMETERS = 2**27  # 512 MB; with the paper's largest head it has 117 million


@dataclass
class Port:
    """An Xception read from a Keras file.

    Attributes:
        source: The file or directory.
        sha256: Digest of its files, one after the other.
        tensors: Under this network's names, in the shapes of its state dict.
        model_args: Arguments of `timm.create_model('xception_paper', ...)`.
        structure: Where each layer is in the file, and what stands around Xception.
        left_out: Array in the file -> why it isn't used.
        keras_version: The version that wrote the file, if it says so.
        is_release: The file is one of the two that Keras publishes, or has their layout.
        misplaced: Arrays that their order would put elsewhere than their names, see `GroupsLayout.by_position`; None if
            the file has no order, or its config is not known.
    """

    source: Path
    sha256: str
    tensors: dict[str, Tensor]
    model_args: dict[str, Any]
    structure: Structure
    left_out: dict[str, str] = field(default_factory=dict)
    keras_version: str = 'unknown'
    is_release: bool = False
    misplaced: list[tuple[str, str]] | None = None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that the file says, in pixels."""
        return self.structure.image_size

    @property
    def final_activation(self) -> str:
        """What Keras applies to the logits, which is left to the user of the network."""
        return self.structure.head.final_activation

    def notes(self) -> list[str]:
        """Lines about what of the file the network does without."""
        ignored = self.structure.ignored
        lines = [f'Ignored, for they change nothing in evaluation: {", ".join(ignored)}'] if ignored else []
        for reason in dict.fromkeys(self.left_out.values()):
            arrays = [array for array, why in self.left_out.items() if why == reason]
            lines.append(f'Left out: {reason}, {len(arrays)} arrays from {arrays[0]} on')
        return lines

    def model(self) -> Xception:
        """The network with its weights, in evaluation mode."""
        with torch.device('meta'):
            model = timm.create_model('xception_paper', **self.model_args)
        check_against(self.tensors, model.state_dict(), str(self.source))
        counters = [name for name in model.state_dict() if name.endswith('num_batches_tracked')]
        own = {name: tensor.clone() for name, tensor in self.tensors.items()}
        model.load_state_dict(own | {name: torch.zeros((), dtype=torch.long) for name in counters}, assign=True)
        return model.eval()


def port(source: str | Path, config: Path | None = None, output_layer: str | None = None) -> Port:
    """Reads an Xception from any file or directory in which Keras has kept one.

    Args:
        source: What `formats.open_source` takes, or 'keras-imagenet' or 'keras-imagenet-notop', which are downloaded.
        config: What `model.to_json()` gave, for weights alone that don't tell their head.
        output_layer: Name of the layer that is the output, of a model that has several.

    Raises:
        KerasFileError: The source is missing, damaged, unsafe, no Xception, or holds arrays that it has no place for.
        ReleaseError: The download failed.
    """
    path = Path(source).expanduser()
    if str(source) in RELEASES and not path.exists():
        path = fetch(str(source))
    with open_source(path) as opened, refusals_of(path):
        if config is not None:
            has_config = opened.config is not None and not opened.keras_version.startswith('1.')
            if has_config or opened.preset is not None:
                raise KerasFileError(f'{path} holds the config of its model; leave out {config}.')
            opened.config = read_json(config)
        # a config is read before anything of the weights
        if output_layer and opened.preset is not None:
            raise KerasFileError(f'{path} has one output; leave out --output-layer.')
        if output_layer and opened.config is None:
            raise KerasFileError(f'{path} holds weights alone, whose outputs have no names: add --config FILE.')
        known = parse(opened.config, path, output_layer) if opened.config is not None else None
        layout = layout_of(opened.weights)
        if opened.preset is None:
            structure = known or bare(layout.layers())
        else:
            structure = read_preset(path, opened.preset, layout.layers())
        tensors, model_args, left_out = read_layers(structure, layout)
        is_release = known is None and _is_release(layout, model_args)
        if is_release:
            structure.image_size = 299, 299
            structure.head.final_activation = 'softmax' if structure.head.classifier else 'linear'
        return Port(
            path,
            sha256_of(opened.files),
            tensors,
            model_args,
            structure,
            left_out,
            opened.keras_version,
            is_release,
            _misplaced(structure, layout),
        )


def _is_release(layout: Layout, model_args: dict[str, Any]) -> bool:
    """Whether a file has the layout and the outputs of one that Keras publishes; others that Keras 1 wrote have not."""
    plain = {*model_args} <= {'num_classes', 'global_pool', 'in_chans'} and model_args['num_classes'] in (0, 1000)
    return isinstance(layout, GroupsLayout) and layout.is_release and plain


def _with_arrays(structure: Structure) -> list[tuple[KerasLayer, FileLayer]]:
    """Pairs what arrays are for with the file's layers that hold them."""
    of_images = KerasLayer('', 'the preparation of images', 'normalization')
    return [
        *((LAYERS[name], layer) for name, layer in structure.layers.items()),
        *structure.head.layers_with_arrays(),
        *((of_images, step.normalization) for step in structure.steps if step.normalization),
    ]


def _misplaced(structure: Structure, layout: Layout) -> list[tuple[str, str]] | None:
    if structure.model is None or not isinstance(layout, GroupsLayout) or layout.is_keras1:
        return None
    kinds = {file_layer: layer.kind for layer, file_layer in _with_arrays(structure)}
    return layout.by_position([(layer, kinds[layer]) for layer in all_layers(structure.model) if layer in kinds])


def read_layers(structure: Structure, layout: Layout) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Reads the arrays of a model, after all of their names and shapes were checked.

    Returns:
        Tensors under this network's names, the network's arguments, and array -> why it isn't used.
    """
    weights, head = layout.weights, structure.head
    pairs = _with_arrays(structure)
    places = layout.paths([(file_layer, layer.kind) for layer, file_layer in pairs])
    if head.classifier is not None and not head.num_classes:
        head.num_classes = _last_axis(weights, places[head.classifier]['kernel'])
    kernel = weights.shape(places[pairs[0][1]]['kernel'])
    channels = structure.channels or (kernel[2] if len(kernel) == 4 else 3)
    if not 0 < channels <= MAX_CHANNELS:
        raise Refused(f'its images would have {channels} channels.')
    arguments = structure.arguments
    model_args = dict(head.model_args(arguments.get('act_layer', 'relu')), in_chans=channels, **arguments)
    expected = Xception(**model_args, device='meta').state_dict()
    if sum(tensor.numel() for tensor in expected.values()) > MAX_PARAMETERS:
        raise Refused(f'with its head it would have more than {MAX_PARAMETERS:,} parameters. {head.way_out}')
    used: dict[str, str] = {}
    for layer, file_layer in pairs:
        for keras, torch_name, axes in KINDS[layer.kind]:
            path, tensor = places[file_layer][keras], expected.get(f'{layer.torch}.{torch_name}')
            if tensor is None and path not in weights:  # of images, there is not always a count
                continue
            found = weights.shape(path)
            if path in used:
                raise Refused(f'{path!r} would be both {used[path]} and {layer.torch}.')
            if tensor is not None and found != (shape := keras_shape(tuple(tensor.shape), axes)):
                raise Refused(f'{path!r} has shape {found}; this network needs {shape} for {layer.torch}.')
            used[path] = layer.torch
    left_out = _left_out(weights, used, [layout.place_of(layer) for layer in structure.others])
    steps = []
    for step in structure.steps:
        if step.normalization:
            mean, variance = (_of_channels(weights, places[step.normalization][name]) for name in ('mean', 'variance'))
            step = normalized(mean, variance)
        steps.append(step)
    structure.rescaling = rescaling_of(steps, channels)
    tensors: dict[str, Tensor] = {}
    for layer, file_layer in pairs:
        if layer.kind != 'normalization':
            paths = places[file_layer].items()
            tensors |= to_torch(layer, {keras: weights.read(path) for keras, path in paths})
    for name in head.of_pooled() if head.max_first else ():
        tensors[name] = tensors[name].roll(tensors[name].shape[-1] // 2, -1)
    return tensors, model_args, left_out


def _of_channels(weights: WeightFile, path: str) -> np.ndarray:
    """The array of a Normalization, as [C] or [1]."""
    shape = weights.shape(path)
    if math.prod(shape) > MAX_CHANNELS:
        raise Refused(f'{path!r} has shape {shape}, not a number for each channel.')
    return weights.read(path).ravel().astype(float)


def _last_axis(weights: WeightFile, kernel: str) -> int:
    """Width of a Dense layer, of which only the arrays are known."""
    shape = weights.shape(kernel)
    if len(shape) != 2 or not 0 < shape[1] <= MAX_UNITS:
        raise Refused(f'the kernel of its classifier, {kernel!r}, has shape {shape}.')
    return shape[1]


def _left_out(weights: WeightFile, used: dict[str, str], others: Sequence[str]) -> dict[str, str]:
    """Array -> why it isn't used; raises if there is no reason. `others` are the groups of another output."""
    reasons = {**dict.fromkeys(map(re.escape, others), OTHER_OUTPUT), **LEFT_OUT}
    left = [path for path in weights.arrays() if path not in used]
    found = {path: next((why for start, why in reasons.items() if re.match(start, path)), '') for path in left}
    if unknown := [path for path, reason in found.items() if not reason]:
        beside = {path.rpartition('/')[0] for path in used} & {path.rpartition('/')[0] for path in unknown}
        quantized = ' Those of a layer with others may come from quantize(), such as int8: save it as it was.'
        raise Refused(
            f'it holds {len(unknown)} arrays that Xception has no place for: {listed(unknown, 8)}.'
            f'{quantized if beside else ""} Used were {len(used)}: {listed(list(used), 8)}.'
        )
    return found
