"""python -m conversion.verify model.keras DIR --sizes 71 150 224 299 331

Compares the network of a directory with the Keras model that it came from, after every module, at several sizes.
Without Keras it makes the proofs that need none, on photos, and says so.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
from cyclopts import App, Parameter
from cyclopts.validators import Number

import xception_hub  # noqa: F401  registers the model
from xception_hub import Xception
from xception_hub.errors import KerasFileError, ParityError, ReleaseError, WeightsError
from xception_hub.layers import MIN_IMG_SIZE
from xception_hub.porting.output import PARITY_FILE
from xception_hub.porting.parity import Check, Parity, prove_parity
from xception_hub.porting.photos import Photo, compare_pixels, find_photos, open_photos, sample_photos
from xception_hub.porting.port import Port, port
from xception_hub.porting.preprocessing import Preprocessing

__all__ = ['check_declared', 'verify']

SIZES = (71, 150, 224, 299, 331)  # pixels: Keras' smallest, its users' and the paper's usual
PHOTOS = 16  # for the moving statistics: means need more than two
PLOT_FILE = 'parity.png'
PIXELS = 1e-6  # relative difference of prepared images, in float32; another interpolation or range is 1e-1

app = App(name='python -m conversion.verify', help=__doc__, version_flags=[])


@app.default
def main(
    source: str,
    directory: Path,
    /,
    *,
    images: Path | None = None,
    sizes: Annotated[
        tuple[int, ...], Parameter(consume_multiple=True, negative='', validator=Number(gte=MIN_IMG_SIZE))
    ] = SIZES,
    config: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Verifies DIRECTORY against SOURCE; ends with status 0 only if every proof that decides passed.

    Args:
        source: The Keras file: what `python -m conversion.convert` takes.
        directory: What it wrote.
        images: A folder of photos to compare on, instead of one that Matplotlib brings along.
        sizes: Heights and widths of square images in pixels; the model's own comes first.
        config: What model.to_json() gives in Keras, if the conversion needed it.
        plot: The PNG to draw of the difference by depth, DIRECTORY/parity.png if not given.
    """
    try:
        parity = verify(port(source, config), directory, sizes, find_photos(images) if images else [])
        _update(directory / PARITY_FILE, parity.as_dict())
    except (KerasFileError, ParityError, ReleaseError, WeightsError, OSError, ImportError) as e:
        sys.exit(f'error: {e}')
    if parity.proofs:
        print(f'{parity.tap_table()}\n')
        print(draw(parity, plot or directory / PLOT_FILE) + '\n')
    print(f'{parity.report()}\nWritten: {directory / PARITY_FILE}')
    if not parity.passed:
        sys.exit('The networks are NOT shown to be the same.')


def verify(ported: Port, directory: Path, sizes: tuple[int, ...] = SIZES, photos: list[Path] | None = None) -> Parity:
    """Compares the network of a directory with the Keras file that it came from.

    Args:
        ported: What `port` reads from the file.
        directory: What the conversion wrote.
        sizes: Heights and widths of square images in pixels, beside the model's own.
        photos: To compare on; without any, a photo of Matplotlib's.

    Raises:
        WeightsError: The directory's weights don't fit its config.
        OSError: There is no such directory, or its parity.json can't be read.
        ParityError: Keras is not installed, and there is no photo.
    """
    if not (directory / 'config.json').is_file():
        raise OSError(f'{directory} is no model directory: it has no config.json.')
    network = timm.create_model(f'local-dir:{directory}', pretrained=True).eval()
    squares = [(size, size) for size in sizes]
    own = [ported.image_size] if ported.image_size else []
    pictures: list[Photo] = [*(photos or sample_photos())][:PHOTOS] if network.in_chans == 3 else []
    parity = prove_parity(ported, network, list(dict.fromkeys(own + squares)), pictures, _prepared(network, pictures))
    parity.checks += check_declared(directory, pictures)
    return parity


def _prepared(network: Xception, photos: list[Photo]) -> np.ndarray | None:
    """Photos [B, H, W, C] as timm prepares them for the directory's network; None without photos."""
    if not photos:
        return None
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    return np.stack([transform(photo).permute(1, 2, 0).numpy() for photo in open_photos(photos)])


def check_declared(directory: Path, photos: Sequence[Photo]) -> list[Check]:
    """Whether timm prepares images, and names classes, as was declared when the file was converted.

    Args:
        directory: With config.json, from which timm takes both, and parity.json, where they were declared.
        photos: To prepare in both ways.
    """
    declared = _read_report(directory / PARITY_FILE).get('declared')
    if not declared:
        return []
    network = timm.create_model(f'local-dir:{directory}')
    cfg: Any = network.pretrained_cfg
    names, found = declared['class_names'], cfg.get('label_names')
    same = (names or None) == (list(found) if found else None)
    checks = [
        Check(
            'class names',
            same,
            True,
            f'{"as" if same else "NOT as"} they were declared',
            dict(declared=names, found=found),
        )
    ]
    if photos:
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in declared['preprocessing'].items()
        }
        error = compare_pixels(network, Preprocessing(**settings), photos)
        checks.append(
            Check(
                'input',
                error <= PIXELS,
                True,
                f"on {len(photos)} images timm's transform differs by {error:.1e} from the declared preprocessing "
                f'({settings["input_range"]}, {settings["interpolation"]}), of {PIXELS:.0e} at most',
                dict(difference=error, limit=PIXELS),
            )
        )
    return checks


def _read_report(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}
    except ValueError as e:
        raise OSError(f'{file} is not JSON ({e}); convert again.') from e


def _update(file: Path, report: dict[str, Any]) -> None:
    """Replaces the proofs in the directory's report, and keeps what it says of the source."""
    with tempfile.NamedTemporaryFile('w', dir=file.parent, delete=False, encoding='utf-8') as temporary:
        json.dump({**_read_report(file), **report}, temporary, indent=2)
    os.replace(temporary.name, file)


def draw(parity: Parity, path: Path) -> str:
    """Draws the relative difference after each module, a line for each size, with the tolerance.

    Returns:
        Where it was drawn, or why it wasn't.
    """
    try:
        import matplotlib
    except ImportError as e:
        return f'Not drawn: {e}.'
    matplotlib.use('Agg')
    from matplotlib import pyplot

    proofs = [proof for proof in parity.proofs if len(proof.differences) > 1]
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout='constrained')
    for proof in proofs:
        values = [max(value, 1e-17) for value in proof.differences.values()]
        axes.plot(list(proof.differences), values, marker='o', markersize=4, label=f'{proof.size[0]}x{proof.size[1]}')
    axes.axhline(proofs[0].tolerance, color='#d6453d', linestyle='--', label='tolerance')
    axes.set(yscale='log', ylabel='relative L2 difference', title=f'float64, against {parity.reference}')
    for label in axes.get_xticklabels():
        label.set(rotation=45, rotation_mode='anchor', ha='right')
    axes.grid(axis='y', alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(title='pixels', frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return f'Drawn: {path}'


if __name__ == '__main__':
    app()
