"""xception-hub convert model.keras -o DIR --input-range tf --interpolation nearest

Converts a Keras Xception into a directory that timm loads. It first compares the network with Keras, and writes nothing
if their outputs differ. In a clone: python -m conversion.convert.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from xception_hub.errors import KerasFileError, ParityError, exits_with_message, printable_lines
from xception_hub.images import sample_photos
from xception_hub.layers import MIN_IMG_SIZE
from xception_hub.porting.declared import choose_preprocessing, read_class_names
from xception_hub.porting.output import write
from xception_hub.porting.parity import Parity, prove_parity
from xception_hub.porting.port import Port, port
from xception_hub.porting.preprocessing import Photo, Preprocessing, photos_in, prepared_batch

# Second size of the comparison, in pixels: the poolings get odd and even maps, both in height and in width.
SECOND_SIZE = (107, 150)

STATISTICS_PHOTOS = 10  # means need more than two

app = App(name='python -m conversion.convert', help=__doc__, version_flags=[])


def convert(
    ported: Port,
    output: Path,
    preprocessing: Preprocessing,
    class_names: Sequence[str] | None = None,
    photos: Sequence[Path] = (),
) -> Parity:
    """Compares the network of a ported file with Keras, and writes a model directory if both compute the same.

    Args:
        ported: The result of `port`.
        output: Directory for model.safetensors, config.json, README.md and parity.json.
        preprocessing: Preparation of the training images.
        class_names: Name of each output, in order.
        photos: Image files to compare on. By default one photo from Matplotlib; noise unless the model has 3 channels.

    Raises:
        KerasFileError: The number of class names differs from that of the outputs.
        DirectoryError: The directory can't be written.
        ParityError: Keras and the converted network compute different outputs; or Keras is not installed, and the
            proofs without it failed or lack a photo.
    """
    classes = ported.model_args['num_classes']
    if class_names is not None and len(class_names) != classes:
        raise KerasFileError(f'{ported.source} has {classes} outputs, but {len(class_names)} class names were given.')
    model = ported.model()
    pictures: Sequence[Photo] = (photos or sample_photos()) if model.in_chans == 3 else []
    sizes = list(dict.fromkeys([preprocessing.image_size, SECOND_SIZE]))
    prepared = prepared_batch(pictures[:STATISTICS_PHOTOS], preprocessing.pretrained_cfg(model.in_chans))
    parity = prove_parity(ported, model, sizes, pictures, prepared)
    if not parity.passed:
        raise ParityError(f'{ported.source}: the proof of parity failed; nothing was written.\n{parity.report()}')
    write(output, ported, model, parity, preprocessing, class_names)
    return parity


@app.default
@exits_with_message(OSError, ImportError)
def main(
    source: str,
    /,
    *,
    output: Annotated[Path, Parameter(alias='-o')],
    input_range: Literal['tf', 'unit', 'raw'] | None = None,
    interpolation: Literal['nearest', 'bilinear', 'bicubic'] | None = None,
    size: Annotated[int | None, Parameter(name=['--image-size', '--size'], validator=Number(gte=MIN_IMG_SIZE))] = None,
    class_names: Annotated[list[str] | None, Parameter(consume_multiple=True, negative='')] = None,
    config: Path | None = None,
    output_layer: str | None = None,
    images: Path | None = None,
) -> None:
    """Convert SOURCE into a directory that `timm.create_model('local-dir:DIR', pretrained=True)` loads.

    Args:
        source: Keras file: a .keras archive; a whole model or weights of Keras 1, 2 or 3 in .h5 or .weights.h5; a
            .weights.json with its shards; or the directory of a KerasHub preset. keras-imagenet and
            keras-imagenet-notop download the weights that Keras publishes.
        output: Directory to write: model.safetensors, config.json, README.md, parity.json.
        input_range: Range of the model's input values: tf for -1..1 (xception.preprocess_input), unit for 0..1, raw
            for 0..255. Needed unless the file contains it.
        interpolation: Interpolation that resized the training images. load_img uses nearest,
            image_dataset_from_directory bilinear. Needed unless the file contains it.
        size: Height and width of the images in pixels. Needed unless the file contains it.
        class_names: Names of the classes in order, separated by spaces or commas; or a file with one name per line; or
            `none` for a model without names. Needed for every model with a classifier.
        config: JSON file with the output of Keras' model.to_json(). Needed for weights with several Dense layers.
        output_layer: Name of the output layer. Needed for a model with several outputs.
        images: Folder of photos for the comparison. By default one photo from Matplotlib is used.
    """
    ported = port(source, config, output_layer)
    preprocessing = choose_preprocessing(ported, input_range, interpolation, size, class_names)
    photos = photos_in(images) if images else []
    parity = convert(ported, output, preprocessing, read_class_names(ported, class_names), photos)
    print(f'{parity.report()}\n')
    for line in ported.notes():
        print(printable_lines(line))
    print(f'Written: {output}')


if __name__ == '__main__':
    app()
