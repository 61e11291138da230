"""Memory stays flat when a dataset grows tenfold: an epoch needs what a batch needs, and a stream its buffer."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import pytest
from datasets_read import load
from forked import CONTEXT
from small_images import encoded, photo
from timm.data import create_transform

from xception_hub.training import batches as training_batches
from xception_hub.training.batches import Batching, Images, TrainingBatches, loader

SMALL, LARGE = 120, 1200  # images
FILE_SIZE = 160  # pixels; about 40 kB at full quality, so that the large dataset is 48 MB
CROP_SIZE = 64  # pixels; 48 kB as a tensor, so that all crops of the large dataset are 58 MB
BATCH_SIZE = 32
ROW_GROUP = 50  # rows of a table that are read together: 2 MB
BUFFER = 100  # of the stream, smaller than either dataset: 4 MB
ALLOWANCE = 15  # MB that the large dataset may need more than the small one: allocators are not exact


def jpegs(count: int) -> list[bytes]:
    """Pieces of a photo, each another one, as files."""
    pieces = [photo().crop((x, y, x + FILE_SIZE, y + FILE_SIZE)) for x, y in ((9 * i, 5 * i) for i in range(count))]
    return [encoded(piece, 'JPEG', quality=100, subsampling=0) for piece in pieces]


def save_folder(folder: Path, count: int) -> Path:
    """Two classes of files, most of which are hard links."""
    folder.mkdir()
    files = jpegs(20)
    for name in ('one', 'two'):
        (folder / name).mkdir()
    for i in range(count):
        path, first = (folder / ('one', 'two')[number % 2] / f'{number:05}.jpg' for number in (i, i % len(files)))
        if i < len(files):
            path.write_bytes(files[i])
        else:
            os.link(first, path)
    return folder


def save_table(path: Path, count: int) -> Path:
    """The same images inside a table."""
    files = jpegs(20)
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=['one', 'two']))
    rows = dict(
        image=[{'bytes': files[i % len(files)], 'path': None} for i in range(count)],
        label=[i % 2 for i in range(count)],
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path, batch_size=ROW_GROUP)
    return path


def anonymous() -> float:
    """MB of this process that no file could be read again for."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith('RssAnon:'))


def growth(dataset: str, streaming: bool, buffer: int, keep: bool) -> float:
    """MB that an epoch adds at most, that of finding the images included; to be called in a process of its own."""
    training_batches.SHUFFLE_BUFFER = buffer
    before = most = anonymous()
    split = load(dataset, streaming=streaming).train
    transform = create_transform(CROP_SIZE, is_training=True)
    batches = loader(
        Images(split, transform, CROP_SIZE), TrainingBatches(split, Batching(len(split), BATCH_SIZE), seed=0)
    )
    kept, seen = [], 0
    for batch in batches:
        seen += len(batch.inputs)
        kept += [batch] if keep else []
        most = max(most, anonymous())
    assert seen == len(split)
    return most - before


def growths(folder: Path, streaming: bool, buffer: int = BUFFER, keep: bool = False) -> tuple[float, float]:
    """With the small dataset and the large one."""
    found = []
    for count in (SMALL, LARGE):
        path = save_table(folder / f'{count}.parquet', count) if streaming else save_folder(folder / str(count), count)
        with ProcessPoolExecutor(1, CONTEXT) as process:
            found.append(process.submit(growth, str(path), streaming, buffer, keep).result())
    print(f'{found[0]:.1f} MB, with ten times the images {found[1]:.1f} MB')
    return found[0], found[1]


def is_flat(small: float, large: float) -> bool:
    return large <= small + ALLOWANCE


pytestmark = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='only Linux tells a process its memory')


@pytest.mark.parametrize('streaming', [pytest.param(False, marks=pytest.mark.slow), True])
def test_flat(streaming: bool, tmp_path: Path) -> None:
    small, large = growths(tmp_path, streaming)
    assert is_flat(small, large), f'{small:.1f} MB, with ten times the images {large:.1f} MB'


@pytest.mark.slow
@pytest.mark.parametrize('streaming', [False, True])
def test_what_is_not_flat_is_found(streaming: bool, tmp_path: Path) -> None:
    """A training that keeps every batch, and a stream through a buffer that holds all of it."""
    small, large = growths(tmp_path, streaming, buffer=LARGE, keep=not streaming)
    assert not is_flat(small, large), f'{small:.1f} MB, with ten times the images {large:.1f} MB'
