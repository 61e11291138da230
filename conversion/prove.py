"""xception-hub prove model.keras DIR --sizes 71 150 224 299 331

Compares a converted network with its Keras model after each module, at several image sizes. If Keras is not installed,
it runs the proofs that don't need Keras, on photos, and reports this. In a clone: python -m conversion.prove.
"""

import sys
from pathlib import Path
from typing import Annotated

import timm
from cyclopts import App, Parameter
from cyclopts.validators import Number

import xception_hub  # noqa: F401  registers the model
from xception_hub.errors import exits_with_message
from xception_hub.images import sample_photos
from xception_hub.layers import MIN_IMG_SIZE
from xception_hub.porting.declared import check_declared
from xception_hub.porting.output import PARITY_FILE, update_report
from xception_hub.porting.parity import Parity, prove_parity
from xception_hub.porting.plot import draw
from xception_hub.porting.port import Port, port
from xception_hub.porting.preprocessing import Photo, photos_in, prepared_batch

SIZES = (71, 150, 224, 299, 331)  # pixels: Keras' smallest, its users' and the paper's usual
PHOTOS = 16  # at most, for the proof by the moving statistics; means need more than two
PLOT_FILE = 'parity.png'

app = App(name='python -m conversion.prove', help=__doc__, version_flags=[])


def prove(ported: Port, directory: Path, sizes: tuple[int, ...] = SIZES, photos: list[Path] | None = None) -> Parity:
    """Compares the network of a directory with the Keras file that it was converted from.

    Args:
        ported: The result of `port` for the Keras file.
        directory: Directory that the conversion wrote.
        sizes: Heights and widths of square images in pixels. The model's own size is added.
        photos: Image files to compare on. By default one photo from Matplotlib.

    Raises:
        WeightsError: The directory's weights don't fit its config.
        OSError: There is no such directory, or its parity.json can't be read.
        ParityError: Keras is not installed, and there is no photo.
    """
    if not (directory / 'config.json').is_file():
        raise OSError(f'{directory} is not a model directory: it has no config.json.')
    network = timm.create_model(f'local-dir:{directory}', pretrained=True).eval()
    squares = [(size, size) for size in sizes]
    own = [ported.image_size] if ported.image_size else []
    pictures: list[Photo] = [*(photos or sample_photos())][:PHOTOS] if network.in_chans == 3 else []
    prepared = prepared_batch(pictures, network.pretrained_cfg)
    parity = prove_parity(ported, network, list(dict.fromkeys(own + squares)), pictures, prepared)
    parity.checks += check_declared(directory)
    return parity


@app.default
@exits_with_message(OSError, ImportError)
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
    json_: Annotated[bool, Parameter('--json', negative='')] = False,
) -> None:
    """Prove that DIRECTORY and SOURCE compute the same. The exit status is 0 only if every required proof passed.

    Args:
        source: Keras file, as for `xception-hub convert`.
        directory: Directory that the conversion wrote.
        images: Folder of photos for the comparison. By default one photo from Matplotlib is used.
        sizes: Heights and widths of square images in pixels. The model's own size is always compared, too.
        config: JSON file with the output of Keras' model.to_json(), if the conversion needed it.
        plot: PNG file for a plot of the difference after each module. By default DIRECTORY/parity.png.
        json_: Print the content of DIRECTORY/parity.json instead of tables.
    """
    parity = prove(port(source, config), directory, sizes, photos_in(images) if images else [])
    update_report(directory, parity)
    picture = draw(parity, plot or directory / PLOT_FILE) if parity.proofs else ''
    if json_:
        print((directory / PARITY_FILE).read_text(encoding='utf-8'))
    else:
        if parity.proofs:
            print(f'{parity.tap_table()}\n\n{picture}\n')
        print(f'{parity.report()}\nWritten: {directory / PARITY_FILE}')
    if not parity.passed:
        sys.exit('The proof failed: the networks may compute different outputs.')


if __name__ == '__main__':
    app()
