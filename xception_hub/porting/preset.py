"""What the files of a KerasHub preset say beside its arrays: which network it is, its head, and its images."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .figure5 import compare_backbone
from .graph import FileLayer
from .keras_head import FINAL_ACTIVATIONS, FileHead, Step, finite, rescaling_of
from .layer_settings import Refused, is_number
from .structure import Structure, bare, check_image_size

BACKBONE, CLASSIFIER = 'XceptionBackbone', 'XceptionImageClassifier'
CHANNELS = 3  # of the images that an image converter takes
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic')
WAY_OUT = (
    'In Python with keras_hub: import functools, keras, keras_hub; m = keras_hub.models.{kind}.from_preset({path!r}); '
    'keras.Model({model}).save("model.keras"). Convert model.keras.'
)
OF_BACKBONE = dict(kind='Backbone', model='m.inputs, m.outputs')
OF_CLASSIFIER = dict(
    kind='ImageClassifier',
    model='m.backbone.inputs, functools.reduce(lambda x, layer: layer(x), m.layers[2:], m.backbone.output)',
)


def read_preset(path: Path, files: Mapping[str, dict[str, Any]], layers: list[FileLayer]) -> Structure:
    """Reads the structure from the files of a preset and the layers that its weights name.

    Args:
        path: The directory.
        files: Name of each JSON file -> its content.
        layers: The layers with their places, in Keras' order.

    Raises:
        Refused: It is another network, or has something that cannot be converted.
    """
    task = files.get('task.json')
    try:
        for backbone in [files['config.json'], *([task['config']['backbone']] if task else [])]:
            name = backbone['class_name']
            if name != BACKBONE or not str(backbone['module']).startswith('keras_hub.'):
                raise Refused(
                    f'its backbone is a {name!r:.80} of {backbone["module"]!r:.80}, no {BACKBONE} of KerasHub.'
                )
            compare_backbone(backbone['config'])
        return _read(files, layers)
    except _Unread as e:
        way_out = WAY_OUT.format(path=str(path), **(OF_CLASSIFIER if task else OF_BACKBONE))
        raise Refused(f'{e} {way_out}') from e
    except Refused:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as e:
        raise Refused(f'its JSON files are not those of a preset of KerasHub ({type(e).__name__}: {e}).') from e


class _Unread(Refused):
    """What cannot be converted from a preset, but from a file of Keras that is made of it."""


def _read(files: Mapping[str, dict[str, Any]], layers: list[FileLayer]) -> Structure:
    structure = bare(layers)
    if any(layer.name != role for role, layer in structure.layers.items()):
        raise _Unread('its weights do not name their layers, whose order is not that of Keras.')
    structure.preset = {}
    if task := files.get('task.json'):
        if task['class_name'] != CLASSIFIER:
            raise _Unread(f'its task is a {task["class_name"]!r:.80}, no {CLASSIFIER}.')
        structure.head, structure.ignored = _head(structure.head, task['config']), []
    if converter := files.get('image_converter.json'):
        _add_images(structure, converter['config'])
    return structure


def _head(head: FileHead, config: dict[str, Any]) -> FileHead:
    """The head that the arrays have, with what the task says of it."""
    pooling, activation, dropout = config['pooling'], config['activation'] or 'linear', config['dropout']
    known = activation in FINAL_ACTIVATIONS and is_number(dropout) and 0 <= dropout < 1
    if not known or head.classifier is None or pooling != head.global_pool:
        raise _Unread(
            f'its task has pooling {pooling!r:.80}, activation {activation!r:.80} and dropout {dropout!r:.80}, its '
            f'weights have pooling {head.global_pool!r}.'
        )
    return replace(head, final_activation=activation, drop_rate=float(dropout), ignored=[])


def _add_images(structure: Structure, config: dict[str, Any]) -> None:
    """Adds what the image converter does: it resizes images of 0..255, crops them, and scales their values."""
    if config['image_size'] is not None:
        height, width = config['image_size']
        if not type(height) is type(width) is int:
            raise ValueError(f'its images have the size {height!r:.80}, {width!r:.80}')
        check_image_size(height, width)
        structure.image_size = height, width
    if config.get('pad_to_aspect_ratio'):
        raise _Unread('its image converter pads the images.')
    scale, offset = config['scale'], config['offset']
    try:
        step = Step(1.0 if scale is None else finite(scale), 0.0 if offset is None else finite(offset))
    except Refused as e:
        raise Refused(f'the scale or offset of its image converter {e}.') from e
    rescaling = rescaling_of([step], CHANNELS)
    if isinstance(rescaling[0], tuple):  # with a number for each channel
        structure.channels = CHANNELS
    crop_mode = 'center' if config['crop_to_aspect_ratio'] else 'squash'
    structure.preset = dict(input_range='raw', rescaling=rescaling, crop_mode=crop_mode)
    if config['interpolation'] in INTERPOLATIONS:
        structure.preset['interpolation'] = config['interpolation']
