"""python examples/handwritten_digits.py DIR

Writes scikit-learn's 1,797 real handwritten digits as images to fine-tune on, in a folder for each of ten classes.
"""

from pathlib import Path

import numpy as np
from cyclopts import App
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')

app = App(help=__doc__, version_flags=[])


@app.default
def handwritten_digits(folder: Path, /, *, per_class: int | None = None, classes: int = 10, size: int = 32) -> Path:
    """Writes the digits.

    Args:
        folder: Folder to write.
        per_class: Largest number of images of a class. By default all.
        classes: Number of classes, from zero on; at most 10.
        size: Height and width of the images in pixels; the originals have 8.
    """
    data = load_digits()
    for number, name in enumerate(NAMES[:classes]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(data.images[data.target == number][:per_class]):
            image = Image.fromarray((pixels * 255 / 16).round().astype(np.uint8))
            image.resize((size, size)).save(folder / name / f'{i:03}.png')
    return folder


if __name__ == '__main__':
    app()
