"""python benchmarks/numerics.py

The error that the numerics of the legacy torch lineage cause with the weights that Keras publishes: relative L2 error
of the 2048 pooled features, in float32, on the photos of examples/port_a_keras_model.py. The reference is this network,
which equals Keras. The last but one column is what segmentation_models_pytorch does to the stem, alone.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

from port_a_keras_model import download

from xception_hub import Xception
from xception_hub.porting.port import port
from xception_hub.porting.preprocessing import photo_batch
from xception_hub.weights.lineages import LEGACY_NUMERICS

SIZES = (71, 150, 224, 256, 299, 331)  # pixels; at 71 every pooling meets an odd map, where both paddings agree

app = App(help=__doc__, version_flags=[])


@app.default
@torch.inference_mode()
def main(
    *, photos: int = 6, sizes: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative='')] = SIZES
) -> None:
    """Prints a row for each image size.

    Args:
        photos: Number of photos, at most 18.
        sizes: Heights and widths of the images in pixels.
    """
    checkpoint = download()
    backbone = {name: t for name, t in port(checkpoint.model).tensors.items() if not name.startswith('head.')}
    variants: dict[str, dict[str, Any]] = {
        'exact': {},
        'pool padding': dict(pool_padding=LEGACY_NUMERICS['pool_padding']),
        'eps': dict(bn_eps=LEGACY_NUMERICS['bn_eps']),
        'both': LEGACY_NUMERICS,
        'and stem': dict(LEGACY_NUMERICS, stem_padding=1),  # of segmentation_models_pytorch
        'stem padding': dict(stem_padding=1),
    }
    models = {name: Xception(num_classes=0, **arguments).eval() for name, arguments in variants.items()}
    for model in models.values():
        model.load_state_dict(backbone)
    print(f'{"pixels":>6}' + ''.join(f'{name:>14}' for name in list(models)[1:]) + f'{"cosine, both":>14}')
    for size in sizes:
        images = photo_batch(checkpoint.photos[:photos], (size, size))
        x = torch.from_numpy(images).float().permute(0, 3, 1, 2)
        pooled = {name: model(x) for name, model in models.items()}
        exact = pooled.pop('exact')
        errors = ''.join(f'{(y - exact).norm() / exact.norm():14.3f}' for y in pooled.values())
        print(f'{size:6}{errors}{torch.cosine_similarity(pooled["both"], exact).mean():14.3f}')


if __name__ == '__main__':
    app()
