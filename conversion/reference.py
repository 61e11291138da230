"""Keras itself as the oracle: the model that a file holds, as Keras reads and runs it, tapped after every module.

Keras reads the file with its own code, so that an error in the name table can't be on both sides. It is given a file
only after `port` has found nothing in it but layers of Xception and a plain head.
"""
import os
import re
from typing import Any

import numpy as np
import torch

from .port import Port

__all__ = ['TAPS', 'KerasReference', 'import_keras']

# Where the networks are compared: after each of the 14 modules, after pooling, and at the end.
TAPS = [
    'stem', *(f'entry_flow.{i}' for i in range(3)), *(f'middle_flow.{i}' for i in range(8)),
    *(f'exit_flow.{i}' for i in range(2)), 'head.global_pool', 'head']


FIRST_LAYER, STEM_ACTIVATION, LAST_ACTIVATION = 'block1_conv1', 'block1_conv2_act', 'block14_sepconv2_act'


def import_keras() -> Any:
    """Keras, on the backend that KERAS_BACKEND names, or on torch if it names none.

    Raises:
        ImportError: Keras or the backend is not installed; the message says what to do.
    """
    os.environ.setdefault('KERAS_BACKEND', 'torch')
    try:
        import keras
    except ImportError as e:
        raise ImportError(f"{e}. Install the conversion extra: pip install -e '.[conversion]'.") from e
    return keras


class KerasReference:
    """A file's model in Keras, for images of any size.

    Args:
        ported: What `port` made of the file.
        dtype: 'float32' or 'float64', of weights and computation.

    Raises:
        ImportError: Keras is not installed.
    """

    def __init__(self, ported: Port, dtype: str = 'float64') -> None:
        self.keras = keras = import_keras()
        self.dtype = dtype
        model = self._load(ported)
        if dtype == 'float64':
            _promote_to_float64()
        # the same layers without a fixed image size, in the precision asked for, with Keras' own order of weights
        config = re.sub(r'"float32"', f'"{dtype}"', model.to_json())
        config = re.sub(r'("batch_(?:input_)?shape": \[null), \d+, \d+,', r'\1, null, null,', config)
        twin = keras.models.model_from_json(config)
        twin.set_weights(model.get_weights())
        self._split(twin)

    @property
    def version(self) -> str:
        return f'Keras {self.keras.__version__} on {self.keras.backend.backend()}'

    def _load(self, ported: Port) -> Any:
        if ported.source.suffix == '.keras':
            return self.keras.models.load_model(ported.source, compile=False, safe_mode=True)
        classes = ported.model_args['num_classes']
        model = self.keras.applications.Xception(
            weights=None, include_top=bool(classes), classes=classes or 1000, classifier_activation=None)
        model.load_weights(ported.source)
        return model

    def _split(self, model: Any) -> None:
        """Makes one model of the backbone, with an output per module, and a list of the layers that follow it."""
        backbone = model
        while FIRST_LAYER not in [layer.name for layer in backbone.layers]:
            backbone = next(layer for layer in backbone.layers if isinstance(layer, self.keras.Model))
        end = [layer.name for layer in backbone.layers].index(LAST_ACTIVATION) + 1
        adds = [layer.name for layer in backbone.layers[:end] if isinstance(layer, self.keras.layers.Add)]
        taps = [STEM_ACTIVATION, *adds, LAST_ACTIVATION]
        self._features = self.keras.Model(backbone.inputs, [backbone.get_layer(name).output for name in taps])
        self._head: list[Any] = backbone.layers[end:]
        if backbone is not model:
            self._head += model.layers[model.layers.index(backbone) + 1:]
        # up to the logits, which is where this network ends
        while self._head and isinstance(self._head[-1], self.keras.layers.Activation):
            self._head.pop()
        if self._head and isinstance(self._head[-1], self.keras.layers.Dense):
            self._head[-1].activation = self.keras.activations.linear

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the model on images [B, H, W, C].

        Returns:
            Tap -> [B, h, w, c], from 'head.global_pool' on [B, c]. The last are the logits, if the model has a head.
        """
        to_numpy = self.keras.ops.convert_to_numpy
        with torch.no_grad():
            outputs = self._features(self.keras.ops.convert_to_tensor(images, dtype=self.dtype), training=False)
            taps = dict(zip(TAPS, map(to_numpy, outputs)))
            x = outputs[-1]
            for layer in self._head:
                x = layer(x, training=False)
                if type(layer).__name__.startswith('Global'):
                    taps['head.global_pool'] = to_numpy(x)
            if self._head:
                taps['head'] = to_numpy(x)
            else:
                taps['head.global_pool'] = to_numpy(x).mean(axis=(1, 2))
        return taps


def _promote_to_float64() -> None:
    """Lets float64 stay float64: outside TensorFlow, Keras computes batch normalization of float64 in float32."""
    from keras.src.backend.common import dtypes

    dtypes.BIT64_TO_BIT32_DTYPE['float64'] = 'float64'
