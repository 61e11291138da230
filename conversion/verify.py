"""python -m conversion.verify model.keras DIR --sizes 71 150 224 299 331

Compares the network of a directory with the Keras model that it came from, after every module, at several sizes.
Without Keras it makes the two proofs that need none, on photos, and says so.
"""
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import timm
from cyclopts import App, Parameter
from cyclopts.validators import Number

import xception_hub  # noqa: F401  registers the model
from xception_hub import WeightsError, Xception
from xception_hub.fingerprints import compare
from xception_hub.xception_paper import MIN_IMG_SIZE

from .consistency import MOST, check_consistency
from .output import PARITY_FILE
from .parity import Parity, find_photos, photo_batch, prove_parity
from .port import KerasFileError, Port, port

SIZES = (71, 150, 224, 299, 331)  # pixels: Keras' smallest, its users' and the paper's usual
PHOTOS = 16  # for the proofs without Keras: means need more than two

app = App(name='python -m conversion.verify', help=__doc__, version_flags=[])


@app.default
def main(
        source: Path,
        directory: Path,
        /,
        *,
        images: Path | None = None,
        sizes: Annotated[tuple[int, ...], Parameter(
            consume_multiple=True, negative='', validator=Number(gte=MIN_IMG_SIZE))] = SIZES,
        plot: Path | None = None,
) -> None:
    """Verifies DIRECTORY against SOURCE; ends with status 0 only if every proof that was made passed.

    Args:
        source: The Keras file: what `python -m conversion.convert` takes.
        directory: What it wrote.
        images: A folder of photos to compare on, instead of noise. Without Keras it is needed.
        sizes: Heights and widths of square images in pixels; the model's own comes first.
        plot: A PNG to draw of the difference by depth.
    """
    try:
        ported = port(source)
        network = timm.create_model(f'local-dir:{directory}', pretrained=True).eval()
        photos = find_photos(images) if images else []
        if importlib.util.find_spec('keras'):
            passed, report = _with_keras(ported, network, sizes, photos, plot)
        elif photos:
            passed, report = _without_keras(ported, network, photos, network.pretrained_cfg['input_size'][1:])
        else:
            sys.exit('error: Keras is not installed, and the proofs without it need photos: pass --images FOLDER.')
        _update(directory / PARITY_FILE, report)
    except (KerasFileError, WeightsError, OSError, ImportError) as e:
        sys.exit(f'error: {e}')
    print(f'Written: {directory / PARITY_FILE}')
    if not passed:
        sys.exit('The networks are NOT the same.')


def _with_keras(
        ported: Port, network: Xception, sizes: tuple[int, ...], photos: list[Path], plot: Path | None,
) -> tuple[bool, dict[str, Any]]:
    squares = [(size, size) for size in sizes]
    own = [ported.image_size] if ported.image_size else []
    parity = prove_parity(ported, network, list(dict.fromkeys(own + squares)), photos)
    print(f'{parity.tap_table()}\n\n{parity.table()}\n\nReference: {parity.reference}, every module, at every size.')
    if plot:
        draw(parity, plot)
        print(f'Drawn: {plot}')
    return parity.passed, parity.as_dict()


def _without_keras(
        ported: Port, network: Xception, photos: list[Path], size: tuple[int, int],
) -> tuple[bool, dict[str, Any]]:
    """Equal tensors, and normalizations that agree with photos: not a proof of the computation."""
    state = network.state_dict()
    unequal = [name for name, tensor in ported.tensors.items() if name not in state or not tensor.equal(state[name])]
    found = check_consistency(network, photo_batch(photos, size, PHOTOS))
    fingerprints = compare(ported.tensors)
    passed = not unequal and found.first_wrong is None
    where = f', wrong from {found.first_wrong} on' if found.first_wrong else ''
    print(f"""Keras is not installed, so the computation was NOT compared. What was shown without it:
  tensors: {len(ported.tensors) - len(unequal)} of {len(ported.tensors)} are the file's
  backbone, against what Keras publishes: {fingerprints}
  batch normalizations, on {found.images} photos: the worst of {len(found.deviations)} is off by {found.worst:.2f}
    standard deviations (at most {MOST}){where}""")
    proof = dict(proof='without Keras', images=found.images, deviations=found.deviations, limit=MOST,
                 unequal_tensors=unequal, passed=passed)
    return passed, dict(passed=passed, reference=None, proofs=[proof])


def _update(file: Path, report: dict[str, Any]) -> None:
    """Replaces the proofs in the directory's report, and keeps what it says of the source."""
    old = json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}
    with tempfile.NamedTemporaryFile('w', dir=file.parent, delete=False, encoding='utf-8') as temporary:
        json.dump({**old, **report}, temporary, indent=2)
    os.replace(temporary.name, file)


def draw(parity: Parity, path: Path) -> None:
    """Draws the relative difference after each module, a line for each size, with the tolerance."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    proofs = [proof for proof in parity.proofs if len(proof.differences) > 1]
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout='constrained')
    for proof in proofs:
        values = [max(value, 1e-17) for value in proof.differences.values()]
        axes.plot(list(proof.differences), values, marker='o', markersize=4, label=f'{proof.size[0]}x{proof.size[1]}')
    axes.axhline(proofs[0].tolerance, color='#d6453d', linestyle='--', label='tolerance')
    axes.set(yscale='log', ylabel='relative L2 difference', title=f'float64, against {parity.reference}')
    axes.tick_params(axis='x', rotation=60)
    axes.grid(axis='y', alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(title='pixels', frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == '__main__':
    app()
