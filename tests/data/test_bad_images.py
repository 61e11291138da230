"""Every bad image named, with its reason, whoever looks at it; files known by their content."""

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets_read import load
from PIL import Image
from small_images import encoded, photo, save_pieces, split_of

from xception_hub import images
from xception_hub.data.bad_images import BadImage, Scan, digests, scan
from xception_hub.data.labelled import Split
from xception_hub.errors import ImageError

GOOD = (0, 2, 5, 8)  # indices among the bad ones


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that declares a square of pixels."""
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Good and bad files in turn, and why they are bad; '' if they aren't."""
    folder = tmp_path_factory.mktemp('files')
    good = save_pieces(folder / 'good', 4, size=32)
    jpeg = encoded(photo().resize((200, 100)), 'JPEG')
    bad = {
        'truncated.jpg': (jpeg[:2000], 'damaged: image file is truncated'),
        'text.jpg': (b'<html>404</html>', 'no image of a known format'),
        'empty.png': (b'', 'no image of a known format'),
        'missing.png': (None, 'there is no such file'),
        'bomb.png': (bomb(40000), '40000x40000 pixels, of 134217728 at most'),
        'short.png': (bomb(40), 'damaged: '),
        'half.gif': (encoded(photo().resize((64, 64)), 'GIF')[:1500], 'damaged: '),
    }
    for name, (content, _) in bad.items():
        if content is not None:
            (folder / name).write_bytes(content)
    found = {str(folder / name): reason for name, (_, reason) in bad.items()}
    (folder / 'folder.png').mkdir()
    found[str(folder / 'folder.png')] = 'cannot be read: Is a directory'
    order = list(found)
    for index, path in zip(GOOD, good):
        order.insert(index, str(path))
    return {path: found.get(path, '') for path in order}


def split_with(files: dict[str, str], streamed: bool = False) -> Split:
    return split_of([Path(path) for path in files], streamed=streamed)


def check(found: Scan, files: dict[str, str], indices: range) -> None:
    """Whether these indices were looked at, and found to be what they are."""
    paths = list(files)
    assert sorted(found.digests) == list(indices)
    assert [bad.index for bad in found.bad] == [i for i in indices if files[paths[i]]]
    for bad in found.bad:
        assert bad.name == paths[bad.index]
        assert bad.reason.startswith(files[bad.name])
    for index, digest in found.digests.items():
        path = Path(paths[index])
        assert digest == (hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b'')


@pytest.mark.parametrize('streamed', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
def test_bad_images(files: dict[str, str], workers: int, streamed: bool) -> None:
    """Each by its name and reason; by one process, or by three that share the work."""
    seen: list[None] = []
    for min_side in (None, 20):
        found = scan(split_with(files, streamed), min_side, workers=workers, step=lambda: seen.append(None))
        check(found, files, range(len(files)))
    assert len(seen) == 2 * len(files)
    ranks = [scan(split_with(files, streamed), workers=workers, processes=3, rank=rank) for rank in range(3)]
    for rank, found in enumerate(ranks):
        check(found, files, range(rank, len(files), 3))


@pytest.mark.parametrize('streamed', [False, True])
def test_files_that_are_only_read(files: dict[str, str], streamed: bool) -> None:
    """What isn't decoded can't be damaged."""
    found = scan(split_with(files, streamed), decoded=False)
    assert [bad.reason for bad in found.bad] == ['there is no such file', 'cannot be read: Is a directory']
    assert found.digests == scan(split_with(files)).digests


def test_rows_without_a_file() -> None:
    """Images that are in the dataset itself are named by their rows, which a part keeps."""
    good, cut = encoded(photo().resize((40, 30))), encoded(photo().resize((40, 30)), 'JPEG')[:300]
    cells: list[Any] = [{'bytes': good, 'path': None}, {'bytes': cut, 'path': None}, {}, {'bytes': good, 'path': None}]
    for streamed in (False, True):
        found = scan(split_of(cells, streamed=streamed, name='test').select([1, 2, 3]))
        assert [(bad.index, bad.name, bad.reason.partition(':')[0]) for bad in found.bad] == [
            (0, "row 1 of the split 'test'", 'damaged'),
            (1, "row 2 of the split 'test'", 'no image in this row'),
        ]
        assert found.digests == {0: hashlib.sha256(cut).digest(), 1: b'', 2: hashlib.sha256(good).digest()}


def test_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of images as they are decoded: smaller, where the file allows it and no more is min_side."""
    monkeypatch.setattr(images, 'MAX_PIXELS', 10_000)
    small = photo().resize((400, 300))
    split = split_of([{'bytes': encoded(small, format), 'path': None} for format in ('PNG', 'JPEG')])
    reason = '400x300 pixels, of 10000 at most'
    assert scan(split, 20).bad == [BadImage(0, "row 0 of the split 'train'", reason)]
    assert [bad.reason for bad in scan(split).bad] == [reason] * 2


@pytest.mark.parametrize('streamed', [False, True])
def test_digests(streamed: bool, tmp_path: Path) -> None:
    """By index; equal for equal files, wherever they are. A file that cannot be read is named."""
    paths = save_pieces(tmp_path, 5, size=16)
    copy = {'bytes': paths[3].read_bytes(), 'path': None}
    found = digests(split_of([*paths, copy, paths[0]], streamed=streamed), workers=2)
    assert found == [hashlib.sha256(path.read_bytes()).digest() for path in (*paths, paths[3], paths[0])]
    assert len(set(found)) == 5
    with pytest.raises(ImageError, match=f'{tmp_path}/none.png'):
        digests(split_of([*paths, tmp_path / 'none.png'], streamed=streamed))
    empty = split_of([{'bytes': b'1', 'path': None}], streamed=streamed).select([])
    assert scan(empty) == Scan([], {}, {}) and digests(empty) == []


def test_grey_images_of_twelve_bits(tmp_path: Path) -> None:
    """The scan stops at them; what is said to be white is so in training, too."""
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        Image.fromarray(np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)).save(tmp_path / name / '1.png')
    found = scan(load(str(tmp_path)).train)
    assert ['--grey-maximum' in image.reason for image in found.bad] == [True, True]
    split = load(str(tmp_path), grey_maximum=4095).train
    assert not scan(split).bad
    assert np.asarray(split.image(0)).max() == 255
