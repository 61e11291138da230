"""python examples/kitchen_photos.py DIR

Writes 18 real photos to fine-tune on, in a folder for each of three classes. The photos come from the package that
examples/port_a_keras_model.py downloads. They are sorted by hand, because the package labels only half of them.
"""

import shutil
import sys
from pathlib import Path

from cyclopts import App

sys.path.insert(0, str(Path(__file__).resolve().parent))

from port_a_keras_model import download

PHOTOS = {
    'cup': ('0000', '0009', '0020', '0291', '0299', '0403', '0422'),
    'cutlery': ('0001', '0013', '0024', '0199', '0207', '0412'),
    'plate': ('0002', '0004', '0026', '0192', '0385'),
}

app = App(help=__doc__, version_flags=[])


@app.default
def kitchen_photos(folder: Path, /) -> None:
    """Writes the photos.

    Args:
        folder: Folder to write.
    """
    photos = {photo.stem: photo for photo in download().photos}
    for class_name, names in PHOTOS.items():
        (folder / class_name).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(photos[name], folder / class_name)
    print(f'{sum(map(len, PHOTOS.values()))} photos of {", ".join(PHOTOS)}: {folder}')


if __name__ == '__main__':
    app()
