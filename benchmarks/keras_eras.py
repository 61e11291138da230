"""python benchmarks/keras_eras.py

Makes a file of each kind that Keras has written, of a model with random arrays, converts it, and prints a row of the
table in docs/port_your_keras_model.md: how far the network's logits are from those of the model in Keras.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault('KERAS_BACKEND', 'torch')
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'support')]

import keras
import keras_files as files
import keras_heads as heads
import numpy as np
import old_keras_files as old
import torch
from cyclopts import App

from xception_hub.errors import KerasFileError
from xception_hub.porting.port import port

app = App(help=__doc__, version_flags=[])

# What it returns: the file, the model, and the file for --config, or None.
Made = tuple[Path, Any, Path | None]


def with_config(file: Path, model: Any) -> Made:
    config = file.with_name('config.json')
    config.write_text(model.to_json())
    return file, model, config


def of(build: Callable[[], Any], write: Callable[[Any, Path], Path]) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        model = files.randomised(build())
        return write(model, folder), model, None

    return make


def numbered_anew(folder: Path) -> Made:
    model = files.randomised(files.flat_with_head())
    file = old.renamed(files.weights_of_keras2(model, folder), group=old.shifted, owner=old.shifted)
    return with_config(file, model)


def built_twice(folder: Path) -> Made:
    model = files.randomised(files.nested())
    return old.renamed(files.whole_h5_of_keras2(model, folder), owner=old.again), model, None


def of_keras1(folder: Path) -> Made:
    model = files.randomised(files.flat_with_top())
    return old.keras1_file(model, folder, 41), model, None


def with_head(kind: str) -> Callable[[Path], Made]:
    return of(lambda: old.head_of(*old.HEADS[kind][0]()), files.archive)


def pooled(kind: str) -> Callable[[Path], Made]:
    join, pools, hidden, _ = heads.POOLED[kind]
    return of(lambda: heads.joined(heads.base(), join, pools, *hidden()), files.archive)


KINDS: dict[tuple[str, str], Callable[[Path], Made]] = {
    ('Keras 1.2', 'weights'): of_keras1,
    ('Keras 2, TensorFlow 1', 'whole model, built twice in a session'): built_twice,
    ('Keras 2, TensorFlow 2', 'whole model .h5'): of(files.nested, files.whole_h5_of_keras2),
    ('Keras 2, TensorFlow 2', 'weights .h5 alone'): of(files.flat_with_top, files.weights_of_keras2),
    ('Keras 2, TensorFlow 2', 'weights .h5, with the config of a model built today'): numbered_anew,
    ('TensorFlow 2.12', 'weights .weights.h5'): of(files.flat_with_top, files.weights_h5_of_tensorflow_2_12),
    ('Keras 3.0 to 3.5', '.keras'): of(files.flat_with_head, files.archive_without_names),
    ('Keras 3', '.keras, Sequential, rescaling inside'): of(files.sequential, files.archive),
    ('Keras 3', 'RandAugment and AugMix in front'): of(heads.augmented, files.archive),
    ('Keras 3', 'whole model .h5'): of(files.nested, files.whole_h5),
    ('Keras 3', 'shards'): of(files.flat_with_top, files.shards),
    ('KerasHub', 'preset'): of(files.flat_with_top, files.preset),
    **{('any', f'head: {kind}'): with_head(kind) for kind in old.HEADS},
    **{('any', f'head: {kind}'): pooled(kind) for kind in heads.POOLED},
}


def difference(made: Made) -> float:
    """L2 norm of the difference of the logits, relative to that of Keras' output before its last activation."""
    file, model, config = made
    ported = port(file, config)
    side = model.input_shape[1] or files.SIZE
    images = np.random.default_rng(0).uniform(-1, 1, (2, side, side, 3))
    scale, offset = (np.asarray(value) for value in ported.structure.rescaling)
    taken = ((images - offset) / scale).astype(np.float32)
    for layer in reversed(model.layers):  # up to the logits, which is where the network ends
        if isinstance(layer, keras.layers.Dense) or type(layer).__name__ in ('Activation', 'Softmax'):
            layer.activation = keras.activations.linear
        if isinstance(layer, keras.layers.Dense):
            break
    with torch.inference_mode():
        expected = np.asarray(keras.ops.convert_to_numpy(model(taken, training=False)), np.float64)
        x = torch.from_numpy((taken * scale + offset).astype(np.float32).transpose(0, 3, 1, 2))
        found = ported.model()(x).double().numpy()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@app.default
def main(only: str = '') -> None:
    """Prints the table.

    Args:
        only: Part of the name of the kinds to show.
    """
    print('| written by | what | relative difference of the logits, float32 |\n|---|---|---|')
    for (era, kind), make in KINDS.items():
        if only in f'{era}, {kind}':
            with tempfile.TemporaryDirectory() as folder:
                try:
                    result = f'{difference(make(Path(folder))):.0e}'
                except KerasFileError as e:
                    result = str(e)
            print(f'| {era} | {kind} | {result} |', flush=True)


if __name__ == '__main__':
    app()
