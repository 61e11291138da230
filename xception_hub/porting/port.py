"""A Keras file becomes an Xception: every array it holds is used exactly once, or listed with the reason why not.

source -> formats.open_source -> config? -> structure -> layouts: path of each array -> checked, then read
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from .. import Xception
from ..errors import KerasFileError, listed
from ..files import sha256_of
from ..weights.checkpoints import check_against
from .array_places import GroupsLayout, Layout, layout_of
from .figure5 import compare_backbone
from .formats import Opened, open_source, read_json
from .keras_head import FINAL_ACTIVATIONS, MAX_CHANNELS, MAX_UNITS, normalized, rescaling_of
from .layer_settings import Refused, is_number, refusals_of
from .names import KINDS, LAYERS, KerasLayer, keras_shape, to_torch
from .preprocessing import Rescaling
from .release import RELEASES, fetch
from .structure import Structure, bare, check_image_size, parse
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
        kind: Kind of the source, as in `formats.Opened`.
        sha256: Digest of its files, one after the other.
        tensors: Under this network's names.
        model_args: Arguments of `timm.create_model('xception_paper', ...)`.
        structure: Where each layer is in the file, and what stands around Xception.
        left_out: Array in the file -> why it isn't used.
        keras_version: The version that wrote the file, if it says so.
        is_release: The file is one of the two that Keras publishes, or has their layout.
        config: The model's config, if it was given or is in the file.
        image_converter: What a KerasHub preset says of its images.
        misplaced: Arrays that their order would put elsewhere than their names, see `GroupsLayout.by_position`; None if
            the file has no order, or its config is not known.
    """

    source: Path
    kind: str
    sha256: str
    tensors: dict[str, Tensor]
    model_args: dict[str, Any]
    structure: Structure
    left_out: dict[str, str] = field(default_factory=dict)
    keras_version: str = 'unknown'
    is_release: bool = False
    config: dict[str, Any] | None = None
    image_converter: dict[str, Any] | None = None
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
    path = fetch(str(source)) if str(source) in RELEASES and not Path(source).exists() else Path(source)
    with open_source(path) as opened, refusals_of(path):
        if config is not None:
            if opened.config is not None and not opened.keras_version.startswith('1.'):
                raise KerasFileError(f'{path} holds the config of its model; leave out {config}.')
            opened.config = read_json(config)
        # a config is read before anything of the weights
        has_config = opened.config is not None and opened.kind != 'preset'
        if output_layer and not has_config:
            raise KerasFileError(f'{path} holds weights alone, whose outputs have no names: add --config FILE.')
        known = parse(opened.config, path, output_layer) if has_config else None
        layout = layout_of(opened.weights)
        structure = known or bare(layout.layers())
        if opened.kind == 'preset':
            _add_preset(opened, structure)
        tensors, model_args, left_out = read_layers(structure, layout)
        is_release = known is None and _is_release(layout, model_args)
        if is_release:
            structure.image_size = 299, 299
            structure.head.final_activation = 'softmax' if structure.head.classifier else 'linear'
        return Port(
            path,
            opened.kind,
            sha256_of(opened.files),
            tensors,
            model_args,
            structure,
            left_out,
            opened.keras_version,
            is_release,
            opened.config if opened.kind != 'preset' else None,
            _preset_config(opened, 'image_converter.json') or None,
            _misplaced(structure, layout) if known else None,
        )


def _is_release(layout: Layout, model_args: dict[str, Any]) -> bool:
    """Whether a file has the layout and the outputs of one that Keras publishes; others that Keras 1 wrote have not."""
    plain = {*model_args} <= {'num_classes', 'global_pool', 'in_chans'} and model_args['num_classes'] in (0, 1000)
    return isinstance(layout, GroupsLayout) and layout.is_release and plain


def _misplaced(structure: Structure, layout: Layout) -> list[tuple[str, str]] | None:
    if not isinstance(layout, GroupsLayout) or layout.is_keras1:
        return None
    layers = [(layer, LAYERS[name].kind) for name, layer in structure.layers.items()]
    layers += [(layer, ours.kind) for ours, layer in structure.head.layers_with_arrays()]
    layers += [(step.file_layer, 'normalization') for step in structure.steps if step.file_layer is not None]
    return layout.by_position(sorted(layers, key=lambda pair: pair[0].number))


def _add_preset(opened: Opened, structure: Structure) -> None:
    """Adds what the preset's task says of the head, and its backbone of the images."""
    backbone = (opened.config or {}).get('class_name')
    if backbone != 'XceptionBackbone':
        raise Refused(f"its backbone is a {backbone!r}, not an 'XceptionBackbone'.")
    compare_backbone((opened.config or {}).get('config') or {})
    task, converter = _preset_config(opened, 'task.json'), _preset_config(opened, 'image_converter.json')
    if structure.head.classifier is not None:
        activation, dropout = task.get('activation') or 'linear', task.get('dropout') or 0.0
        if activation not in FINAL_ACTIVATIONS or not is_number(dropout) or not 0 <= dropout < 1:
            raise Refused(f'its classifier has activation {activation!r}, dropout {dropout!r}.')
        structure.head = replace(structure.head, final_activation=activation, drop_rate=float(dropout))
    for name in ('scale', 'offset'):
        if isinstance(converter.get(name), float) and not math.isfinite(converter[name]):
            raise Refused(f'its image converter has {name} {converter[name]}.')
    size = converter.get('image_size')
    if isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size):
        check_image_size(size[0], size[1])
        structure.image_size = size[0], size[1]


def _preset_config(opened: Opened, file: str) -> dict[str, Any]:
    """The config in a preset's file; empty without the file."""
    config = opened.preset.get(file, {'config': {}}).get('config')
    if not isinstance(config, dict):
        raise Refused(f"{file}: its 'config' is a {type(config).__name__} instead of an object.")
    return config


def read_layers(structure: Structure, layout: Layout) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Reads the arrays of a model, after all of their names and shapes were checked.

    Returns:
        Tensors under this network's names, the network's arguments, and array -> why it isn't used.
    """
    weights, head = layout.weights, structure.head
    pairs = [(LAYERS[name], layer) for name, layer in structure.layers.items()] + head.layers_with_arrays()
    of_images = [step.file_layer for step in structure.steps if step.file_layer is not None]
    places = layout.paths(
        [(file_layer, layer.kind) for layer, file_layer in pairs] + [(layer, 'normalization') for layer in of_images]
    )
    places, places_of_images = places[: len(pairs)], places[len(pairs) :]
    if head.classifier is not None and not head.num_classes:
        head.num_classes = _last_axis(weights, pairs[-1][0], places[-1]['kernel'])
    kernel = weights.shape(places[0]['kernel'])
    channels = structure.channels or (kernel[2] if len(kernel) == 4 else 3)
    if not 0 < channels <= MAX_CHANNELS:
        raise Refused(f'its images would have {channels} channels.')
    arguments = structure.arguments
    model_args = dict(head.model_args(arguments.get('act_layer', 'relu')), in_chans=channels, **arguments)
    expected = Xception(**model_args, device='meta').state_dict()
    if sum(tensor.numel() for tensor in expected.values()) > MAX_PARAMETERS:
        raise Refused(f'with its head it would have more than {MAX_PARAMETERS:,} parameters. {head.way_out}')
    account = _Account(weights)
    plan: list[tuple[KerasLayer, dict[str, tuple[str, tuple[int, ...]]]]] = []
    for (layer, _), paths in zip(pairs, places):
        shapes = {
            keras: keras_shape(tuple(expected[f'{layer.torch}.{torch_name}'].shape), axes)
            for keras, torch_name, axes in KINDS[layer.kind]
        }
        for keras, path in paths.items():
            account.use(path, shapes[keras], layer.torch)
        plan.append((layer, {keras: (path, shapes[keras]) for keras, path in paths.items()}))
    for paths in places_of_images:
        for path in paths.values():
            if path in weights:  # there is not always a count
                account.use(path, weights.shape(path), 'the preparation of images')
    left_out = account.left_out([layout.place_of(layer) for layer in structure.others])
    structure.rescaling = _rescaling(structure, channels, weights, iter(places_of_images))
    tensors: dict[str, Tensor] = {}
    for layer, arrays in plan:
        tensors.update(to_torch(layer, {keras: weights.read(*place) for keras, place in arrays.items()}))
    for name in head.of_pooled() if head.max_first else ():
        tensors[name] = tensors[name].roll(tensors[name].shape[-1] // 2, -1)
    return tensors, model_args, left_out


def _rescaling(structure: Structure, channels: int, weights: WeightFile, places: Iterator[dict[str, str]]) -> Rescaling:
    """What the model does to its images, with what the arrays of a Normalization say."""
    steps = []
    for step in structure.steps:
        if step.file_layer is not None:
            mean, variance = (_of_channels(weights, path) for path in list(next(places).values())[:2])
            step = normalized(mean, variance)
        steps.append(step)
    return rescaling_of(steps, channels)


def _of_channels(weights: WeightFile, path: str) -> Any:
    shape = weights.shape(path)
    if math.prod(shape) > MAX_CHANNELS:
        raise Refused(f'{path!r} has shape {shape}, not a number for each channel.')
    return weights.read(path, shape).ravel().astype(float)


def _last_axis(weights: WeightFile, layer: KerasLayer, kernel: str) -> int:
    """Width of a Dense layer, of which only the arrays are known."""
    shape = weights.shape(kernel)
    if len(shape) != 2 or not 0 < shape[1] <= MAX_UNITS:
        raise Refused(f'the kernel of {layer.keras!r} has shape {shape}.')
    return shape[1]


class _Account:
    """Which arrays of a file are used, and for what."""

    def __init__(self, weights: WeightFile) -> None:
        self.weights = weights
        self.used: dict[str, str] = {}

    def use(self, path: str, shape: tuple[int, ...], layer: str) -> None:
        if path in self.used:
            raise Refused(f'{path!r} would be both {self.used[path]} and {layer}.')
        found = self.weights.shape(path)
        if found != shape:
            raise Refused(f'{path!r} has shape {found}; this network needs {shape} for {layer}.')
        self.used[path] = layer

    def left_out(self, others: Sequence[str] = ()) -> dict[str, str]:
        """Array -> why it isn't used; raises if there is no reason. `others` are the groups of another output."""
        reasons = {
            path: OTHER_OUTPUT if path.startswith(tuple(others)) else _reason(path)
            for path in self.weights.arrays()
            if path not in self.used
        }
        unknown = [path for path, reason in reasons.items() if not reason]
        if unknown:
            of_layers = {path.rpartition('/')[0] for path in self.used} & {path.rpartition('/')[0] for path in unknown}
            quantized = ' Those of a layer with others may come from quantize(), such as int8: save it as it was.'
            raise Refused(
                f'it holds {len(unknown)} arrays that Xception has no place for: '
                f'{listed(unknown, 8)}.{quantized if of_layers else ""} Used were {len(self.used)}: '
                f'{listed(list(self.used), 8)}.'
            )
        return reasons


def _reason(path: str) -> str:
    return next((why for pattern, why in LEFT_OUT.items() if re.match(pattern, path)), '')
