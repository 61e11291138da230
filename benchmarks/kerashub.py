"""pip install --no-deps keras-hub kagglehub kagglesdk && python benchmarks/kerashub.py

KerasHub's Xception with the weights that Keras publishes, saved as a preset and then as a file that this project reads.
Prints the difference of the feature maps relative to their norm, on a random image in [-1, 1], in float64.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter

os.environ['KERAS_BACKEND'] = 'torch'
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

import keras
import keras_hub
from port_a_keras_model import download

from xception_hub.porting.names import LAYERS, to_keras
from xception_hub.porting.port import port
from xception_hub.porting.reference import allow_float64

FILTERS = [[32, 64], [128] * 2, [256] * 2, [728] * 2, *[[728] * 3] * 8, [728, 1024], [1536, 2048]]  # figure 5
POOLING = [False, True, True, True, *[False] * 8, True, False]

app = App(help=__doc__, version_flags=[])


@app.default
@torch.inference_mode()
def main(*, sizes: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative='')] = (299, 224, 150)) -> None:
    """Prints a row for each image size.

    Args:
        sizes: Heights and widths of the images in pixels.
    """
    allow_float64('torch')
    tensors = port(download().model).tensors
    backbone = keras_hub.models.XceptionBackbone(FILTERS, POOLING, dtype='float64')
    for name, layer in LAYERS.items():
        backbone.get_layer(name).set_weights(to_keras(layer, tensors))
    with tempfile.TemporaryDirectory() as folder:
        backbone.save_to_preset(folder)
        saved = keras_hub.models.Backbone.from_preset(folder)
        keras.Model(saved.inputs, saved.outputs).save(f'{folder}/model.keras')
        network = port(f'{folder}/model.keras').model().double().eval()
    print('| pixels | difference of the features, relative to their norm |\n|---|---|')
    for size in sizes:
        # KerasHub's input is float32, whatever its layers are
        images = (torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1).double()
        expected = backbone(images.permute(0, 2, 3, 1), training=False).permute(0, 3, 1, 2)
        difference = (network.forward_features(images) - expected).norm() / expected.norm()
        print(f'| {size} | {difference:.1e} |')


if __name__ == '__main__':
    app()
