"""python examples/fashion_mnist.py DIR

Writes Fashion-MNIST, 28x28 photos of clothes in ten classes, as a Hugging Face dataset: 60,000 training and 10,000
validation images. The source is Debian's package (apt install dataset-fashion-mnist) or a folder with its four files.
"""

import gzip
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter
from cyclopts.validators import Number
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as Pillow

NAMES = ['T-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot']
SPLITS = {'train': 'train', 'validation': 't10k'}  # our name -> the files' name

Count = Annotated[int | None, Parameter(validator=Number(gte=1))]

app = App(help=__doc__, version_flags=[])


def read_idx(file: Path) -> np.ndarray:
    """Reads a gzipped IDX file of bytes: two zeros, the type 8, the number of dimensions, sizes, values.

    Raises:
        OSError, EOFError, zlib.error: The file is missing, not gzipped, or damaged.
        ValueError: The file is not an IDX file of bytes, or its sizes do not fit its content.
    """
    content = gzip.decompress(file.read_bytes())
    if content[:3] != b'\0\0\x08':
        raise ValueError(f'{file} is not an IDX file of bytes.')
    shape = np.frombuffer(content, '>u4', count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)


@app.default
def fashion_mnist(
    folder: Path,
    /,
    *,
    source: Path = Path('/usr/share/datasets/fashion-mnist'),
    train: Count = None,
    validation: Count = None,
) -> Path:
    """Writes the dataset.

    Args:
        folder: Folder to write.
        source: Folder with train-images-idx3-ubyte.gz and the three other files.
        train: Largest number of training images, the first ones (the files are shuffled). By default all.
        validation: Largest number of validation images, the first ones. By default all.
    """

    def images(name: str, count: int | None) -> Iterator[dict[str, Any]]:
        kinds = ('images-idx3', 'labels-idx1')
        pixels, labels = (read_idx(source / f'{SPLITS[name]}-{kind}-ubyte.gz') for kind in kinds)
        for image, label in zip(pixels[:count], labels[:count].tolist()):
            yield {'image': Pillow.fromarray(image), 'label': label}

    features = Features({'image': Image(), 'label': ClassLabel(names=NAMES)})
    try:
        splits = {
            name: Dataset.from_list(list(images(name, count)), features)
            for name, count in (('train', train), ('validation', validation))
        }
    except (OSError, EOFError, zlib.error, ValueError) as e:
        sys.exit(f"error: {e}\nInstall Debian's dataset-fashion-mnist, or name a folder with its files by --source.")
    DatasetDict(splits).save_to_disk(folder)
    return folder


if __name__ == '__main__':
    app()
