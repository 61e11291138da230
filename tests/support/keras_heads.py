"""Models in Keras whose heads are no line of layers: poolings that are joined, ensembles, several inputs."""

from collections.abc import Callable
from typing import Any

import keras

L = keras.layers
MAP = 71  # pixels, of images whose maps have 3x3 places


def base() -> Any:
    return keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3))


def augmented() -> Any:
    """Layers for training in front of Xception, and a rescaling among them."""
    x = inputs = keras.Input((MAP, MAP, 3))
    rescaling = L.Rescaling(1 / 127.5, -1)
    for layer in (L.RandAugment(name='rand'), L.AugMix(name='mix'), L.Dropout(0.1, name='drop'), rescaling, base()):
        x = layer(x)
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))


def joined(base: Any, join: str, pools: str, *hidden: Any) -> Any:
    """Xception, its maps pooled in several ways, their join, hidden layers and a classifier."""
    kinds = {'avg': L.GlobalAveragePooling2D, 'max': L.GlobalMaxPooling2D}
    inputs = keras.Input((MAP, MAP, 3))
    maps = base(inputs)
    x = getattr(L, join)()([kinds[pool]()(maps) for pool in pools.split()])
    for layer in hidden:
        x = layer(x)
    return keras.Model(inputs, L.Dense(3, activation='softmax')(x))


# The layer that joins, the poolings in its order, hidden layers, timm's name.
POOLED: dict[str, tuple[str, str, Callable[[], list[Any]], str]] = {
    'means and maxima': ('Concatenate', 'avg max', list, 'catavgmax'),
    'maxima and means': (
        'Concatenate', 'max avg', lambda: [_norm(), L.Dropout(0.1), L.Dense(8, activation='relu')], 'catavgmax'),
    'average of both': ('Average', 'max avg', lambda: [L.Dense(8, activation='tanh', use_bias=False)], 'avgmax'),
}  # fmt: skip


def _norm() -> Any:
    """A normalization no two of whose features are alike."""
    return L.BatchNormalization(
        **{f'{array}_initializer': keras.initializers.RandomUniform(0.5, 1.5, seed=seed)
           for seed, array in enumerate(('gamma', 'beta', 'moving_mean', 'moving_variance'))}
    )  # fmt: skip


def _classifier(base: Any, name: str, units: int = 2) -> Any:
    inputs = keras.Input((MAP, MAP, 3))
    x = L.GlobalAveragePooling2D()(base(inputs))
    return keras.Model(inputs, L.Dense(units, activation='softmax')(x), name=name)


def ensemble(base: Any) -> Any:
    """Xception's answers averaged with those of another network."""
    inputs = keras.Input((MAP, MAP, 3))
    small = keras.Sequential([keras.Input((MAP, MAP, 3)), L.Conv2D(4, 3), L.GlobalMaxPooling2D(), L.Dense(2)])
    return keras.Model(inputs, L.Average()([_classifier(base, 'first')(inputs), small(inputs)]))


def two_xceptions(base: Any) -> Any:
    other = keras.applications.Xception(weights=None, include_top=False, input_shape=(MAP, MAP, 3), name='second_base')
    inputs = keras.Input((MAP, MAP, 3))
    both = [_classifier(base, 'first')(inputs), _classifier(other, 'second')(inputs)]
    return keras.Model(inputs, L.Average()(both))


def two_heads(base: Any) -> Any:
    inputs = keras.Input((MAP, MAP, 3))
    x = L.GlobalAveragePooling2D()(base(inputs))
    both = [L.Dense(2, name='one')(x), L.Dense(2, name='two')(L.Dense(4, activation='relu')(x))]
    return keras.Model(inputs, L.Add()(both))


def image_and_table(base: Any) -> Any:
    """A row of a table beside the image."""
    row, image = keras.Input((5,), name='row'), keras.Input((MAP, MAP, 3), name='image')
    x = L.Dense(6, activation='relu')(L.GlobalAveragePooling2D()(base(image)))
    x = L.Concatenate()([x, L.Dense(4)(row)])
    return keras.Model([row, image], L.Dense(2)(x))


def attention(base: Any) -> Any:
    """Squeeze and excitation of the maps."""
    inputs = keras.Input((MAP, MAP, 3))
    maps = base(inputs)
    gate = L.Dense(2048, activation='sigmoid', name='gate')(L.GlobalAveragePooling2D()(maps))
    x = L.Multiply()([maps, L.Reshape((1, 1, 2048))(gate)])
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))


def features_and_answer(base: Any) -> Any:
    """Two outputs, one of which leads to the other."""
    inputs = keras.Input((MAP, MAP, 3))
    x = L.GlobalAveragePooling2D(name='features')(base(inputs))
    return keras.Model(inputs, [x, L.Dense(2, name='answer')(x)])


ENSEMBLES: dict[str, Callable[[Any], Any]] = {
    f.__name__: f for f in (ensemble, two_xceptions, two_heads, image_and_table, attention, features_and_answer)
}
