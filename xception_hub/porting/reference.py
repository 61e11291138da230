"""Keras itself as the oracle: the model that a file holds, as Keras reads and runs it, tapped after every module.

Keras reads the file with its own code, so that an error in the name table can't be on both sides. It is given a file
only after `port` has found nothing in it but layers of Xception and a plain head, and only if its config names nothing
but classes of Keras that are known here. Some files Keras can't read any more, or reads by a position that depends on
which layers were frozen: then Keras' own Xception is given the arrays as the port has read them, and `reading` says so.
"""

import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..allocator import release_freed_memory
from ..errors import ParityError, in_one_line
from ..topology import TAPS
from .keras_head import ACTIVATIONS, MAP_POOLS, POOLS
from .keras_model import build, import_keras
from .names import AUGMENTATIONS
from .port import Port
from .structure import BACKBONE_CLASSES, FIRST, MODELS

STEM_ACTIVATION, LAST_ACTIVATION = 'block1_conv2_act', 'block14_sepconv2_act'
BY_KERAS = 'the file as Keras itself reads it'

# Whatever a config may name for Keras to be allowed to read it.
# fmt: off
LOADED_CLASSES = frozenset((
    *MODELS, *BACKBONE_CLASSES, *AUGMENTATIONS, *POOLS, *MAP_POOLS, 'InputLayer', 'Dense', 'Dropout', 'Flatten',
    'Softmax', 'Rescaling', 'Normalization', 'TrueDivide', 'Divide', 'Subtract', 'Multiply', '__keras_tensor__',
    '__tuple__', 'DTypePolicy', 'Policy', 'SeedGenerator', 'L1', 'L2', 'L1L2', 'MaxNorm', 'NonNeg', 'UnitNorm',
    'MinMaxNorm', 'Zeros', 'Ones', 'Constant', 'GlorotUniform', 'GlorotNormal', 'HeUniform', 'HeNormal',
    'LecunUniform', 'LecunNormal', 'RandomUniform', 'RandomNormal', 'TruncatedNormal', 'VarianceScaling', 'Orthogonal',
))
# fmt: on
LOADED_MODULES = re.compile(r'keras(\.[a-z_.0-9]+)?|builtins')


class KerasReference:
    """A file's model in Keras, for images of any size.

    Args:
        ported: What `port` made of the file.
        dtype: 'float32' or 'float64', of weights and computation.

    Attributes:
        reading: Who read the file: `BY_KERAS`, or why Keras didn't.
        rescaling: Scale and offset from the images that the model takes to what Xception takes.

    Raises:
        ImportError: Keras is not installed.
        ParityError: Keras fails at the model, now or when it is called.
    """

    def __init__(self, ported: Port, dtype: str = 'float64') -> None:
        self.keras = import_keras()
        self.dtype = dtype
        self.reading = BY_KERAS
        self.rescaling = ported.structure.rescaling
        self._pools_by_max = ported.structure.head.global_pool == 'max'
        with _of_keras():
            self._prepare(ported)

    def _prepare(self, ported: Port) -> None:
        keras, dtype = self.keras, self.dtype
        model = self._load(ported)
        if dtype == 'float64':
            allow_float64(keras.backend.backend())
        # the same layers without a fixed image size, in the precision asked for, with Keras' own order of weights
        config = re.sub(r'"(?:mixed_)?b?float(?:16|32)"', f'"{dtype}"', model.to_json())
        if not ported.structure.head.one_size:
            config = re.sub(r'("batch_(?:input_)?shape": \[null), \d+, \d+,', r'\1, null, null,', config)
        twin = keras.models.model_from_json(config)
        for source, target in zip(model.weights, twin.weights, strict=True):  # one by one: there are 84 MB of them
            target.assign(source)
        del model, source
        release_memory()
        self._split(twin)

    @property
    def version(self) -> str:
        return f'Keras {self.keras.__version__} on {self.keras.backend.backend()}'

    @property
    def by_keras(self) -> bool:
        return self.reading == BY_KERAS

    def _load(self, ported: Port) -> Any:
        reason = _why_not_loaded(ported)
        if not reason:
            try:
                return self._load_by_keras(ported)
            except Exception:  # Keras has no error of its own for what it can't read
                reason = f'Keras {self.keras.__version__} does not read this file of Keras {ported.keras_version}'
        self.reading = f"Keras' own Xception with the arrays as the port has read them, for {reason}"
        size = ported.image_size if ported.structure.head.one_size else None
        return build(ported.model(), size or (None, None), rescaling=ported.structure.rescaling)

    def _load_by_keras(self, ported: Port) -> Any:
        models = self.keras.models
        if ported.kind in ('archive', 'whole model'):
            return models.load_model(ported.source, compile=False, safe_mode=True)
        classes = ported.model_args['num_classes']
        if ported.config is not None:
            model = models.model_from_json(json.dumps(ported.config))
        else:
            model = self.keras.applications.Xception(
                weights=None,
                include_top=bool(classes),
                classes=classes or 1000,
                classifier_activation=None,
                input_shape=(299, 299, ported.model_args['in_chans']),
            )
        model.load_weights(ported.source)
        return model

    def _split(self, model: Any) -> None:
        """Makes one model of Xception, with an output per module, and lists of the layers before and after it."""
        layers = list(self._flat(model))
        names = [layer.name for layer in layers]
        start, end = names.index(FIRST), names.index(LAST_ACTIVATION)
        adds = [layer for layer in layers[start:end] if isinstance(layer, self.keras.layers.Add)]
        taps = [layers[names.index(STEM_ACTIVATION)], *adds, layers[end]]
        self._features = self.keras.Model(layers[start].input, [layer.output for layer in taps])
        self._before = [layer for layer in layers[:start] if not isinstance(layer, self.keras.layers.InputLayer)]
        self._head = [layer for layer in layers[end + 1 :] if not isinstance(layer, self.keras.layers.InputLayer)]
        # up to the logits, which is where this network ends
        while self._head and type(self._head[-1]).__name__ in ('Activation', 'Softmax', 'ReLU'):
            self._head.pop()
        if self._head and isinstance(self._head[-1], self.keras.layers.Dense):
            self._head[-1].activation = self.keras.activations.linear

    def _flat(self, model: Any) -> Iterator[Any]:
        """All layers in the order of computation, models in it opened."""
        # a functional model's graph also has the operations that are no layers, such as x / 127.5
        for layer in getattr(model, 'operations', model.layers):
            if isinstance(layer, self.keras.Model):
                yield from self._flat(layer)
            else:
                yield layer

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the model on images [B, H, W, C], in the range that it takes.

        Returns:
            Tap -> [B, h, w, c], from 'head.global_pool' on [B, c]. The last are the logits, if the model has a head.
        """
        to_numpy = self.keras.ops.convert_to_numpy
        with torch.no_grad(), _of_keras():
            x = self.keras.ops.convert_to_tensor(images, dtype=self.dtype)
            for layer in self._before:
                x = _call(layer, x)
            outputs = self._features(x, training=False)
            taps = dict(zip(TAPS, map(to_numpy, outputs)))
            x = outputs[-1]
            # as the network pools, unless the model's own pooling follows at once
            pooled = to_numpy(x).max((1, 2)) if self._pools_by_max else to_numpy(x).mean((1, 2))
            for number, layer in enumerate(self._head):
                x = _call(layer, x)
                if number == 0 and type(layer).__name__.startswith('Global'):
                    pooled = to_numpy(x)
            taps['head.global_pool'] = pooled
            if self._head:
                taps['head'] = to_numpy(x)
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


def _call(layer: Any, x: Any) -> Any:
    """Calls a layer as in evaluation; an operation such as x / 127.5 with its number."""
    if hasattr(layer, 'weights'):
        return layer(x, training=False)
    arguments = layer._inbound_nodes[0].arguments
    args = [x if hasattr(value, '_keras_history') else value for value in arguments.args]
    kwargs = {name: x if hasattr(value, '_keras_history') else value for name, value in arguments.kwargs.items()}
    return layer(*args, **kwargs)


def _why_not_loaded(ported: Port) -> str:
    """Why Keras should not read a file; '' if it should."""
    config = {key: value for key, value in (ported.config or {}).items() if key != 'compile_config'}  # never compiled
    foreign = next(_foreign(config), '')
    if foreign:
        return f'its config names {foreign!r}, which is not loaded'
    names = {layer.name for layer in ported.structure.layers.values()}
    if ported.config is not None and FIRST not in names:
        return 'its layers have names of their own'
    if ported.structure.others:
        return 'one of its outputs was chosen'
    if ported.kind == 'preset':
        return 'the preset belongs to KerasHub'
    if ported.kind in ('weights', 'shards') and not ported.is_release:
        first = ported.structure.layers[FIRST]
        if not first.path:
            return 'Keras would read it by positions that depend on which layers were frozen'
        if ported.config is None and first.path.count('/') > 1:
            return 'it does not tell the model around Xception'
    return ''


def _foreign(node: Any) -> Iterator[str]:
    """Names in a config of classes and modules that Keras is not asked for."""
    if isinstance(node, dict):
        class_name, module = node.get('class_name'), node.get('module')
        if class_name == 'function':
            if node.get('config') not in (*ACTIVATIONS, 'linear', 'softmax'):
                yield str(node.get('config'))[:80]
        elif class_name is not None and class_name not in LOADED_CLASSES:
            yield str(class_name)[:80]
        if module is not None and not LOADED_MODULES.fullmatch(str(module)):
            yield str(module)[:80]
        for value in node.values():
            yield from _foreign(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _foreign(value)


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
