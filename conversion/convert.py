"""python -m conversion.convert model.keras -o DIR --input-range tf --interpolation nearest

Converts a Keras Xception into a directory that timm loads, after Keras and the network were shown to compute the same.
"""
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from xception_hub.xception_paper import MIN_IMG_SIZE

from .output import OutputError, Preprocessing, write
from .parity import Parity, find_photos, prove_parity
from .port import KerasFileError, Port, port

__all__ = ['convert']

# Beside the model's own: at this size the poolings meet odd and even maps, in height and in width.
SECOND_SIZE = (107, 150)

# Those of keras.applications; timm's crop for 299 pixels.
RELEASE_PREPROCESSING = Preprocessing('tf', (299, 299), 'bicubic', crop_pct=0.8975, crop_mode='center')

app = App(name='python -m conversion.convert', help=__doc__, version_flags=[])


class ParityError(ValueError):
    """Keras computes something else than the converted network, so nothing was written."""


def convert(
        ported: Port,
        output: Path,
        preprocessing: Preprocessing,
        class_names: Sequence[str] | None = None,
        photos: Sequence[Path] = (),
) -> Parity:
    """Verifies a ported file, and only then writes.

    Args:
        ported: What `port` read.
        output: Directory for model.safetensors, config.json, README.md and parity.json.
        preprocessing: Of the images that the model was trained on.
        class_names: One for each output, in order.
        photos: Image files to compare on; noise without any.

    Raises:
        KerasFileError: The class names don't fit.
        OutputError: The directory can't be written.
        ParityError: Keras computes something else than the converted network.
        ImportError: Keras is not installed.
    """
    classes = ported.model_args['num_classes']
    if class_names is not None and len(class_names) != classes:
        raise KerasFileError(f'{ported.source} has {classes} outputs, but {len(class_names)} class names were given.')
    model = ported.model()
    parity = prove_parity(ported, model, list(dict.fromkeys([preprocessing.image_size, SECOND_SIZE])), photos)
    if not parity.passed:
        raise ParityError(f'{ported.source}: the networks differ; nothing was written.\n{parity.table()}')
    write(output, ported, model, parity, preprocessing, class_names)
    return parity


@app.default
def main(
        source: Path,
        /,
        *,
        output: Annotated[Path, Parameter(alias='-o')],
        input_range: Literal['tf', 'unit', 'raw'] | None = None,
        interpolation: Literal['nearest', 'bilinear', 'bicubic'] | None = None,
        size: Annotated[int | None, Parameter(validator=Number(gte=MIN_IMG_SIZE))] = None,
        class_names: Annotated[list[str] | None, Parameter(consume_multiple=True, negative='')] = None,
        images: Path | None = None,
) -> None:
    """Converts SOURCE into a directory that `timm.create_model('local-dir:DIR', pretrained=True)` loads.

    Args:
        source: A .keras archive, or the official xception_weights_tf_dim_ordering_tf_kernels[_notop].h5.
        output: The directory to write: model.safetensors, config.json, README.md, parity.json.
        input_range: What the model takes: tf for -1..1 (xception.preprocess_input), unit for 0..1, raw for 0..255.
        interpolation: How images were resized in training; load_img's default is nearest, that of
            image_dataset_from_directory bilinear.
        size: Height and width of the images in pixels, if the file doesn't say them.
        class_names: In order: separated by spaces or commas, or a file with one a line.
        images: A folder of photos to compare the networks on, instead of noise.
    """
    try:
        ported = port(source)
        preprocessing = _preprocessing(ported, input_range, interpolation, size)
        photos = find_photos(images) if images else []
        parity = convert(ported, output, preprocessing, _names(class_names), photos)
    except (KerasFileError, OutputError, ParityError, OSError, ImportError) as e:
        sys.exit(f'error: {e}')
    found = parity.fingerprints
    print(f'{parity.table()}\n\nReference: {parity.reference}. Backbone: {found["identical"]} of {sum(found.values())} '
          f'tensors are bit-identical to those that Keras publishes.\nWritten: {output}')


def _preprocessing(
        ported: Port, input_range: str | None, interpolation: str | None, size: int | None,
) -> Preprocessing:
    """What the file says, else the flags; what neither says is asked for."""
    if ported.is_release:
        known = RELEASE_PREPROCESSING
        return replace(known, input_range=input_range or known.input_range,
                       interpolation=interpolation or known.interpolation,
                       image_size=(size, size) if size else known.image_size)
    image_size = (size, size) if size else ported.image_size
    flags = {'--input-range': input_range, '--interpolation': interpolation, '--size': image_size}
    missing = [flag for flag, value in flags.items() if value is None]
    if missing or image_size is None:
        raise KerasFileError(
            f'{ported.source} does not say how its images were prepared, which changes what the model computes. '
            f'Pass {" and ".join(missing)}; --help explains the choices.')
    return Preprocessing(str(input_range), image_size, str(interpolation))


def _names(class_names: list[str] | None) -> list[str] | None:
    """The names themselves, separated by spaces or commas, or from a file."""
    if class_names and len(class_names) == 1:
        if Path(class_names[0]).is_file():
            return Path(class_names[0]).read_text(encoding='utf-8').splitlines()
        return [name.strip() for name in class_names[0].split(',')]
    return class_names


if __name__ == '__main__':
    app()
