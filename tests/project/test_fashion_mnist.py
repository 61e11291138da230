"""The example that makes a dataset of IDX files: here of scikit-learn's digits, in the format of Fashion-MNIST's."""

import gzip
import struct
from pathlib import Path
from typing import Any

import fashion_mnist
import numpy as np
import pytest
from commands import call
from datasets import DatasetDict, load_from_disk
from sklearn.datasets import load_digits

DIGITS = load_digits()
PIXELS = (DIGITS.images * 15).astype(np.uint8)  # [1797, 8, 8]
LABELS = DIGITS.target.astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    return b'\0\0\x08' + struct.pack(f'>B{array.ndim}I', array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """60 images to train on, and 40 others."""
    folder = tmp_path / 'source'
    folder.mkdir()
    for split, rows in (('train', slice(60)), ('t10k', slice(60, 100))):
        for kind, array in (('images-idx3', PIXELS), ('labels-idx1', LABELS)):
            (folder / f'{split}-{kind}-ubyte.gz').write_bytes(gzip.compress(idx(array[rows])))
    return folder


@pytest.mark.parametrize(('limits', 'counts'), [((), (60, 40)), (('--train', 7, '--validation', 3), (7, 3))])
def test_dataset(limits: tuple[Any, ...], counts: tuple[int, int], source: Path, tmp_path: Path) -> None:
    """Every pixel and every label, with the names of the classes."""
    assert call(fashion_mnist.app, tmp_path / 'dataset', '--source', source, *limits).returncode == 0
    dataset = load_from_disk(str(tmp_path / 'dataset'))
    assert isinstance(dataset, DatasetDict)
    for split, start, count in zip(('train', 'validation'), (0, 60), counts):
        assert np.array_equal([np.asarray(image) for image in dataset[split]['image']], PIXELS[start : start + count])
        assert dataset[split]['label'] == LABELS[start : start + count].tolist()
        assert dataset[split].features['label'].names == fashion_mnist.NAMES


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (None, 'No such file'),
        (b'\0\0\x08\x03', 'Not a gzipped file'),
        (gzip.compress(b'PNG' + idx(PIXELS)), 'is not an IDX file of bytes'),
        (gzip.compress(idx(PIXELS)[:-1]), 'cannot reshape'),
    ],
    ids=['missing', 'not gzipped', 'of another kind', 'too short'],
)
def test_bad_file(content: bytes | None, reason: str, source: Path, tmp_path: Path) -> None:
    """One line that says why, and what to do; nothing is written."""
    file = source / 'train-images-idx3-ubyte.gz'
    file.unlink() if content is None else file.write_bytes(content)
    result = call(fashion_mnist.app, tmp_path / 'dataset', '--source', source)
    assert result.returncode == 1 and reason in result.stderr and '--source' in result.stderr
    assert not (tmp_path / 'dataset').exists()
