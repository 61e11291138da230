"""python -m conversion.convert model.keras -o DIR --input-range tf --interpolation nearest

Converts a Keras Xception into a directory that timm loads, after Keras and the network were shown to compute the same.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter
from cyclopts.validators import Number
from timm.data import ImageNetInfo

from xception_hub.errors import DirectoryError, KerasFileError, ParityError, ReleaseError
from xception_hub.layers import MIN_IMG_SIZE
from xception_hub.porting.keras_head import is_number
from xception_hub.porting.output import write
from xception_hub.porting.parity import Parity, prove_parity
from xception_hub.porting.photos import Photo, find_photos, photo_batch, sample_photos
from xception_hub.porting.port import Port, port
from xception_hub.porting.preprocessing import Preprocessing

__all__ = ['convert']

# Beside the model's own: at this size the poolings meet odd and even maps, in height and in width.
SECOND_SIZE = (107, 150)

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic')
MOST_SCALE_OF_BYTES = 1 / 64

STATISTICS_PHOTOS = 10  # means need more than two

# Those of keras.applications; timm's crop for 299 pixels.
RELEASE_PREPROCESSING = Preprocessing('tf', (299, 299), 'bicubic', crop_pct=0.8975, crop_mode='center')

app = App(name='python -m conversion.convert', help=__doc__, version_flags=[])


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
        photos: Image files to compare on; without any, a photo of Matplotlib's, or noise for other than three channels.

    Raises:
        KerasFileError: The class names don't fit.
        DirectoryError: The directory can't be written.
        ParityError: Keras computes something else than the converted network; or it is not installed, and the proofs
            without it failed or lack a photo.
    """
    classes = ported.model_args['num_classes']
    if class_names is not None and len(class_names) != classes:
        raise KerasFileError(f'{ported.source} has {classes} outputs, but {len(class_names)} class names were given.')
    model = ported.model()
    pictures: Sequence[Photo] = (photos or sample_photos()) if model.in_chans == 3 else []
    sizes = list(dict.fromkeys([preprocessing.image_size, SECOND_SIZE]))
    parity = prove_parity(ported, model, sizes, pictures, _statistics_images(preprocessing, pictures))
    if not parity.passed:
        raise ParityError(f'{ported.source}: not shown to be the same; nothing was written.\n{parity.report()}')
    write(output, ported, model, parity, preprocessing, class_names)
    return parity


def _statistics_images(preprocessing: Preprocessing, photos: Sequence[Photo]) -> np.ndarray | None:
    """Photos as the model was trained on, [B, H, W, 3]; None without photos."""
    if not photos:
        return None
    mean, std = preprocessing.mean_and_std()
    return ((photo_batch(photos[:STATISTICS_PHOTOS], preprocessing.image_size) + 1) / 2 - mean) / std


@app.default
def main(
    source: str,
    /,
    *,
    output: Annotated[Path, Parameter(alias='-o')],
    input_range: Literal['tf', 'unit', 'raw'] | None = None,
    interpolation: Literal['nearest', 'bilinear', 'bicubic'] | None = None,
    size: Annotated[int | None, Parameter(validator=Number(gte=MIN_IMG_SIZE))] = None,
    class_names: Annotated[list[str] | None, Parameter(consume_multiple=True, negative='')] = None,
    config: Path | None = None,
    images: Path | None = None,
) -> None:
    """Converts SOURCE into a directory that `timm.create_model('local-dir:DIR', pretrained=True)` loads.

    Args:
        source: A .keras archive; a whole model or weights of Keras 1, 2 or 3 in .h5 or .weights.h5; a sharded
            .weights.json; the directory of a KerasHub preset; or keras-imagenet or keras-imagenet-notop, the weights
            that Keras publishes, which are downloaded.
        output: The directory to write: model.safetensors, config.json, README.md, parity.json.
        input_range: What the model takes: tf for -1..1 (xception.preprocess_input), unit for 0..1, raw for 0..255.
        interpolation: How images were resized in training; load_img's default is nearest, that of
            image_dataset_from_directory bilinear.
        size: Height and width of the images in pixels, if the file doesn't say them.
        class_names: In order: separated by spaces or commas, or a file with one a line; `none` for none.
        config: What model.to_json() gives in Keras, for weights alone with a head of more than one Dense layer.
        images: A folder of photos to compare the networks on, instead of one that Matplotlib brings along.
    """
    try:
        ported = port(source, config)
        names = _names(ported, class_names)
        unnamed = names is None and class_names is None and ported.model_args['num_classes']
        preprocessing = choose_preprocessing(
            ported, input_range, interpolation, size, ['--class-names'] if unnamed else []
        )
        photos = find_photos(images) if images else []
        parity = convert(ported, output, preprocessing, names, photos)
    except (KerasFileError, ReleaseError, DirectoryError, ParityError, OSError, ImportError) as e:
        sys.exit(f'error: {e}')
    print(f'{parity.report()}\n')
    if ported.structure.ignored:
        print(f'Ignored, for they do nothing outside of training: {", ".join(ported.structure.ignored)}')
    for reason in dict.fromkeys(ported.left_out.values()):
        arrays = [array for array, why in ported.left_out.items() if why == reason]
        print(f'Left out: {reason}, {len(arrays)} arrays from {arrays[0]} on')
    print(f'Written: {output}')


def choose_preprocessing(
    ported: Port,
    input_range: str | None = None,
    interpolation: str | None = None,
    size: int | None = None,
    also_missing: Sequence[str] = (),
) -> Preprocessing:
    """What the flags say, else the file; what neither says is asked for, together with flags that are missing besides.

    Raises:
        KerasFileError: Something is missing; the message names the flags.
    """
    known = _known_preprocessing(ported)
    flags = dict(input_range=input_range, interpolation=interpolation, image_size=(size, size) if size else None)
    known.update({name: value for name, value in flags.items() if value})
    names = {'input_range': '--input-range', 'interpolation': '--interpolation', 'image_size': '--size'}
    missing = [flag for name, flag in names.items() if not known.get(name)] + [*also_missing]
    if missing:
        raise KerasFileError(
            f'{ported.source} does not say how its images were prepared, which changes what the model computes, or '
            f'what its classes are called. Pass {" and ".join(missing)}; --help explains the choices.'
        )
    return Preprocessing(**known)


def _known_preprocessing(ported: Port) -> dict[str, Any]:
    """Arguments of `Preprocessing` that the file tells."""
    if ported.is_release:
        return asdict(RELEASE_PREPROCESSING)
    known: dict[str, Any] = dict(image_size=ported.image_size, rescaling=ported.structure.rescaling)
    converter = ported.image_converter
    if converter:
        scale, offset = converter.get('scale'), converter.get('offset')
        rescaling = (1.0 if scale is None else scale), (0.0 if offset is None else offset)
        if not all(map(is_number, rescaling)) or not rescaling[0]:
            raise KerasFileError(f'{ported.source}: its image converter has scale {scale!r} and offset {offset!r}.')
        known.update(input_range='raw', rescaling=rescaling)
        known.update(crop_mode='center' if converter.get('crop_to_aspect_ratio', True) else 'squash')
        if converter.get('interpolation') in INTERPOLATIONS:
            known['interpolation'] = converter['interpolation']
    elif ported.structure.rescales and abs(ported.structure.rescaling[0]) <= MOST_SCALE_OF_BYTES:
        known['input_range'] = 'raw'  # a model that divides its images by something near 127 or 255 takes bytes
    return known


def _names(ported: Port, class_names: list[str] | None) -> list[str] | None:
    """The names themselves, separated by spaces or commas, or from a file; those of ImageNet for Keras' release."""
    if class_names is None and ported.is_release and ported.model_args['num_classes'] == 1000:
        return ImageNetInfo().label_names()
    if class_names == ['none']:
        return None
    if class_names and len(class_names) == 1:
        if Path(class_names[0]).is_file():
            return Path(class_names[0]).read_text(encoding='utf-8').splitlines()
        return [name.strip() for name in class_names[0].split(',')]
    return class_names


if __name__ == '__main__':
    app()
