"""Keras itself as the oracle: the model that a file holds, as Keras reads and runs it, tapped after every module.

Keras builds the file's model from its config and loads the file's weights with its own code, so that an error in the
name table can't be on both sides. It is given a file only after `port` has found nothing in it but layers of Xception
and a plain head, and then only the settings that change what is computed: no class but those listed here, nothing that
other versions of Keras don't know. Some files Keras can't read any more, or reads by a position that depends on which
layers were frozen: then Keras' own Xception is given the arrays as the port has read them, and `reading` says so.
"""

import gc
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..allocator import release_freed_memory
from ..errors import ParityError, in_one_line
from ..topology import TAPS
from .figure5 import TAPPED
from .formats import WEIGHTS, read_weights
from .graph import OPERATIONS, FileLayer, Model, Tensor, operation_of
from .keras_head import STEPS
from .keras_model import build, import_keras, structure_of
from .layer_settings import SETTINGS, Refused, is_number, read_settings
from .names import AUGMENTATIONS
from .port import Port

BY_KERAS = 'the file as Keras itself reads it'
WEIGHTS_BY_KERAS = "Keras' own Xception with the file's weights as Keras itself loads them"
BY_PORT = "Keras' own Xception with the arrays as the port has read them"

POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'avg': lambda maps: maps.mean((1, 2)),
    'max': lambda maps: maps.max((1, 2)),
    'avgmax': lambda maps: (maps.mean((1, 2)) + maps.max((1, 2))) / 2,
    'catavgmax': lambda maps: np.concatenate([maps.mean((1, 2)), maps.max((1, 2))], 1),
}


class KerasReference:
    """A file's model in Keras, for images of any size.

    Args:
        ported: What `port` made of the file.
        dtype: 'float32' or 'float64', of weights and computation.

    Attributes:
        reading: Who read the file: `BY_KERAS`, `WEIGHTS_BY_KERAS`, or `BY_PORT` and why Keras didn't.
        rescaling: Scale and offset from the images that the model takes to what Xception takes.

    Raises:
        ImportError: Keras is not installed.
        ParityError: Keras fails at the model, now or when it is called.
    """

    def __init__(self, ported: Port, dtype: str = 'float64') -> None:
        self.keras = import_keras()
        self.dtype = dtype
        self.reading = BY_KERAS if ported.structure.model else WEIGHTS_BY_KERAS
        self.rescaling = ported.structure.rescaling
        self._head = ported.structure.head
        self._seen: dict[str, Any] = {}
        with _of_keras(), self._precision():
            self._model = self._load(ported)
            release_memory()  # what Keras leaves of the initial values
            self._watch(ported)

    @property
    def version(self) -> str:
        return f'Keras {self.keras.__version__} on {self.keras.backend.backend()}'

    @property
    def by_keras(self) -> bool:
        """Whether Keras itself has read the arrays."""
        return not self.reading.startswith(BY_PORT)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Lets Keras build models in the precision asked for."""
        config = self.keras.config
        before = config.floatx(), config.dtype_policy()
        if self.dtype == 'float64':
            allow_float64(self.keras.backend.backend())
        config.set_floatx(self.dtype)
        config.set_dtype_policy(self.dtype)
        try:
            yield
        finally:
            config.set_floatx(before[0])
            config.set_dtype_policy(before[1])

    def _load(self, ported: Port) -> Any:
        size = ported.image_size if self._head.one_size else None
        try:
            reason = _why_not_loaded(ported)
            if not reason:
                return self._load_by_keras(ported, size or (None, None))
        except Refused as e:  # a layer of another output
            reason = str(e)
        except Exception:  # Keras has no error of its own for what it can't read
            reason = f'Keras {self.keras.__version__} does not read this file of Keras {ported.keras_version}'
        self.reading = f'{BY_PORT}, for {reason}'
        return build(ported.model(), size or (None, None), rescaling=ported.structure.rescaling)

    def _load_by_keras(self, ported: Port, size: tuple[int | None, int | None]) -> Any:
        classes = ported.model_args['num_classes']
        if ported.structure.model:
            model = self.keras.models.model_from_json(json.dumps(loadable(ported.structure.model, size)))
        else:
            shape = (None, None, ported.model_args['in_chans'])
            model = self.keras.applications.Xception(
                weights=None, include_top=False, input_shape=shape, pooling=self._head.global_pool or 'avg'
            )
            if classes:
                model = self.keras.Model(model.input, self.keras.layers.Dense(classes)(model.output))
        if not zipfile.is_zipfile(ported.source):
            model.load_weights(ported.source)
            return model
        with tempfile.TemporaryDirectory() as folder:  # within an archive Keras seeks each array from the beginning
            weights = Path(folder, WEIGHTS)
            with open(weights, 'wb') as file:
                file.writelines(read_weights(Path(ported.source)))
            model.load_weights(weights)
        return model

    def _watch(self, ported: Port) -> None:
        """Keeps what the layers after every module give, and the classifier before its activation."""
        by_file = self.reading == BY_KERAS
        roles = (ported.structure if by_file else structure_of(self._model)).roles
        watched = {tap: roles[role].name for tap, role in zip(TAPS, TAPPED)}
        classifier = self._head.classifier if by_file else None
        for model in self._models(self._model):
            layers = {layer.name: layer for layer in model.layers}
            if set(watched.values()) <= layers.keys():
                for tap, name in watched.items():
                    self._keep(layers[name], tap)
            dense = layers.get(classifier.name) if classifier else None
            if isinstance(dense, self.keras.layers.Dense):
                dense.activation = self.keras.activations.linear
                self._keep(dense, 'head')

    def _models(self, model: Any) -> Iterator[Any]:
        yield model
        for layer in model.layers:
            if isinstance(layer, self.keras.Model):
                yield from self._models(layer)

    def _keep(self, layer: Any, tap: str) -> None:
        call = layer.call

        def kept(*args: Any, **kwargs: Any) -> Any:
            self._seen[tap] = output = call(*args, **kwargs)
            return output

        layer.call = kept

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the model on images [B, H, W, C], in the range that it takes.

        Returns:
            Tap -> [B, h, w, c], from 'head.global_pool' on [B, c]. The last are the logits, if the model has a head.
        """
        to_numpy = self.keras.ops.convert_to_numpy
        with torch.no_grad(), _of_keras():
            self._seen.clear()
            output = self._model(self.keras.ops.convert_to_tensor(images, dtype=self.dtype), training=False)
            taps = {tap: to_numpy(self._seen[tap]) for tap in TAPS if tap in self._seen}
            maps = taps[TAPS[-3]]
            logits = taps.pop('head', None)
            taps['head.global_pool'] = POOLED[self._head.global_pool or 'avg'](maps)
            if logits is not None or len(getattr(output, 'shape', ())) == 2:
                taps['head'] = to_numpy(output) if logits is None else logits
        self._seen.clear()
        return taps


@contextmanager
def _of_keras() -> Iterator[None]:
    """Makes one error of whatever a model leads Keras and its backends to."""
    try:
        yield
    except ImportError:
        raise
    except Exception as e:
        raise ParityError(f'Keras fails: {in_one_line(e)}') from e


def _why_not_loaded(ported: Port) -> str:
    """Why Keras should not read a file; '' if it should."""
    structure = ported.structure
    if structure.preset is not None:
        return 'the preset belongs to KerasHub'
    if structure.others and structure.head.classifier is None:
        return 'one of its outputs was chosen'
    if not structure.model and not ported.is_release:
        first = next(iter(structure.layers.values()))
        if not first.path:
            return 'Keras would read it by positions that depend on which layers were frozen'
        if first.path.count('/') > 1:
            return 'it does not tell the model around Xception'
    return ''


def loadable(model: Model, size: tuple[int | None, int | None], name: str | None = 'model') -> dict[str, Any]:
    """A model's config as the Keras of today writes it, with the settings alone that change what is computed.

    Args:
        model: The model, as any Keras wrote it.
        size: Height and width of the images in pixels, instead of those that the config has.
        name: Name of the model.

    Raises:
        Refused: A layer is of a class that is not known.
    """
    entries = []
    for layer in model.layers.values():
        nested = model.nested.get(layer.name or '')
        entry = loadable(nested, size, layer.name) if nested else _loadable(layer, size)
        nodes: list[Any] = [_lists(call.tensors) for call in layer.calls]
        if layer.constants:
            (place, number), tensor = layer.constants[0], layer.calls[0].tensors[0]
            taken = {'shape': [], 'dtype': 'float32', 'keras_history': [tensor.layer, 0, tensor.output]}
            operands: list[Any] = [{'class_name': '__keras_tensor__', 'config': taken}]
            operands.insert(place, number)
            nodes = [{'args': operands, 'kwargs': {}}]
        entries.append({**entry, 'name': layer.name, 'inbound_nodes': nodes})
    config = {'name': name, 'trainable': model.trainable, 'layers': entries}
    if model.class_name == 'Sequential':
        shaped = entries[0]['class_name'] != 'InputLayer' or entries[0]['config']['batch_shape']
        return _entry('Sequential', {**config, 'layers': entries if shaped else entries[1:]}, 'keras')
    inputs, outputs = _lists([Tensor(name) for name in model.inputs]), _lists(model.outputs)
    config |= {'input_layers': inputs if len(inputs) > 1 else inputs[0]}
    config |= {'output_layers': outputs if len(outputs) > 1 else outputs[0]}
    return _entry('Functional', config, 'keras.src.models.functional')


def _entry(class_name: str, config: dict[str, Any], module: str = 'keras.layers') -> dict[str, Any]:
    return {'module': module, 'class_name': class_name, 'config': config, 'registered_name': None}


def _lists(tensors: Iterable[Tensor]) -> list[Any]:
    return [[tensor.layer, 0, tensor.output] for tensor in tensors]


def _loadable(layer: FileLayer, size: tuple[int | None, int | None]) -> dict[str, Any]:
    class_name, config = layer.class_name, layer.config
    own: dict[str, Any] = {'name': layer.name, 'trainable': config.get('trainable') is not False}
    if class_name == 'InputLayer':
        shape = config.get('batch_shape') or config.get('batch_input_shape')
        shape = [shape[0], *size, shape[3]] if shape and len(shape) == 4 else shape
        return _entry(class_name, {'batch_shape': shape, **({'name': layer.name} if layer.name else {})})
    operation = OPERATIONS.get(operation_of(layer))
    if operation and layer.constants and is_number(layer.constants[0][1]):  # Keras' operations take no lists
        return _entry(operation, {'name': layer.name}, 'keras.src.ops.numpy')
    if class_name in AUGMENTATIONS:
        return _entry('Identity', own)
    if class_name in STEPS:
        found = {key: config[key] for key in SETTINGS[class_name].keys() & config.keys() - {'dtype'}}
        if not any(isinstance(value, dict) and value.get('class_name') != '__numpy__' for value in found.values()):
            return _entry(class_name, own | found)
    if class_name not in SETTINGS or class_name in STEPS:
        raise Refused(f'its config names {class_name!r:.80}, which is not loaded')
    known = read_settings(class_name, config)
    return _entry(class_name, own | {key: value for key, value in known.items() if value != SETTINGS[class_name][key]})


def release_memory() -> None:
    """Frees Keras models that are used no more: they are full of cycles, and the C library keeps what they held."""
    gc.collect()
    release_freed_memory()


def allow_float64(backend: str) -> None:
    """Lets float64 stay float64: without TensorFlow, Keras normalizes in float32, and JAX computes all in float32."""
    from keras.src.backend.common import dtypes

    dtypes.BIT64_TO_BIT32_DTYPE['float64'] = 'float64'
    if backend == 'jax':
        import jax

        jax.config.update('jax_enable_x64', True)
