"""Decoding: files that others turn black, white or sideways, and files that others quietly complete."""

import io
import itertools
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile
from port_a_keras_model import Checkpoint
from small_images import encoded, photo

import xception_hub
from xception_hub import images
from xception_hub.data.labelled import Split
from xception_hub.errors import ImageError
from xception_hub.images import open_image


def pixels(content: bytes) -> np.ndarray:
    image = open_image(content)
    assert image.mode == 'RGB'
    return np.asarray(image)


RAMP = np.linspace(0, 1, 64).reshape(8, 8)
GREY = (RAMP * 255).round().astype(np.uint8)


@pytest.mark.parametrize(
    'content',
    [
        encoded(Image.fromarray((RAMP * 65535).round().astype(np.uint16)), 'PNG'),
        encoded(Image.fromarray((RAMP * 65535).round().astype(np.uint16)), 'TIFF'),
        encoded(Image.fromarray((RAMP * 65535).round().astype(np.int32)), 'TIFF'),
        encoded(Image.fromarray(RAMP.astype(np.float32)), 'TIFF'),
        encoded(Image.fromarray((RAMP * 255).astype(np.float32)), 'TIFF'),
        encoded(Image.fromarray(GREY), 'PNG'),
        encoded(Image.fromarray(GREY).convert('P'), 'GIF'),
    ],
    ids=['16 bits PNG', '16 bits TIFF', '32 bits TIFF', '0..1 TIFF', '0..255 TIFF', '8 bits', 'palette'],
)
def test_grey_values(content: bytes) -> None:
    """The same ramp, however many bits it has."""
    assert np.abs(pixels(content).astype(int) - GREY[..., None]).max() <= 1


@pytest.mark.parametrize('white', [255, 1023, 4095, 16383 - 1])
def test_few_bits_in_sixteen(white: int) -> None:
    """As cameras and scanners write 12 bits: nobody knows what is white, until somebody says it."""
    content = encoded(Image.fromarray((RAMP * white).round().astype(np.uint16)), 'PNG')
    with pytest.raises(ImageError, match=f'{white} in 16 bits.*--grey-maximum'):
        open_image(content)
    assert np.abs(np.asarray(open_image(content, grey_maximum=white)).astype(int) - GREY[..., None]).max() <= 1
    dark = np.asarray(open_image(content, grey_maximum=65535))
    assert dark.max() == round(white / 257)
    with pytest.raises(ImageError, match=f'0..{white - 1}.*0..1'):
        open_image(content, grey_maximum=white - 1)
    assert not np.asarray(open_image(encoded(Image.fromarray(np.zeros((8, 8), np.uint16)), 'PNG'))).any()


@pytest.mark.parametrize(
    'values', [RAMP * 1e6, RAMP - 0.5, np.where(RAMP > 0.5, np.nan, RAMP)], ids=['1e6', '<0', 'NaN']
)
def test_values_that_mean_no_colours(values: np.ndarray) -> None:
    with pytest.raises(ImageError, match='grey values'):
        open_image(encoded(Image.fromarray(values.astype(np.float32)), 'TIFF'))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(orientation: int) -> None:
    """All eight that EXIF knows: the same picture, stored in one of eight ways."""
    upright = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    inverse = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(orientation, [])
    stored = upright
    for method in inverse:
        stored = stored.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encoded(stored, 'PNG', exif=exif))[..., 0], np.asarray(upright))


@pytest.mark.parametrize(('mode', 'colour'), [('RGBA', (255, 0, 0, 0)), ('LA', (0, 0))])
def test_what_is_transparent_is_white(mode: str, colour: tuple[int, ...]) -> None:
    """Whatever colour hides below it; half of it is half of white."""
    image = Image.new(mode, (2, 1), colour)
    image.putpixel((1, 0), (*colour[:-1], 128))
    found = pixels(encoded(image, 'PNG'))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert np.abs(found[0, 1].astype(int) - ([255, 127, 127] if mode == 'RGBA' else [127] * 3)).max() <= 1


def test_transparent_palette() -> None:
    image = Image.new('P', (2, 2), 0)
    image.putpalette([200, 10, 10] + [0] * 765)
    assert pixels(encoded(image, 'PNG', transparency=0)).min() == 255


def test_cmyk() -> None:
    """A JPEG in printing colours is about what it was in RGB; with a profile it is converted by that."""
    colours = Image.new('RGB', (16, 16), (180, 60, 40))
    cmyk = colours.convert('CMYK')
    assert np.abs(pixels(encoded(cmyk, 'JPEG', quality=100)).astype(int) - [180, 60, 40]).max() <= 3
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    with pytest.raises(ImageError, match='damaged'):  # a profile of other colours than the file's
        open_image(encoded(cmyk, 'JPEG', icc_profile=profile))


def test_draft(checkpoint: Checkpoint) -> None:
    """A large JPEG is decoded smaller, but not below twice what is needed, and looks the same."""
    photo = Image.open(checkpoint.photos[0]).convert('RGB').resize((1600, 1200))
    content = encoded(photo, 'JPEG', quality=95)
    small = open_image(content, min_side=150)
    assert (small.size, open_image(content).size) == ((400, 300), (1600, 1200))
    difference = np.asarray(small.resize((200, 150))) - np.asarray(photo.resize((200, 150)), dtype=float)
    assert np.sqrt((difference**2).mean()) < 4
    assert open_image(content, min_side=700).size == (1600, 1200)


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF'])
def test_damaged(format: str, checkpoint: Checkpoint) -> None:
    """Cut off anywhere, a file is an error and not half a picture, whatever Pillow was told before."""
    content = encoded(Image.open(checkpoint.photos[0]).convert('RGB').resize((300, 200)), format)
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        for (share,) in itertools.product((0.01, 0.3, 0.9)):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # Pillow's, of the TIFF
                with pytest.raises(ImageError):
                    open_image(content[: int(share * len(content))])
        assert ImageFile.LOAD_TRUNCATED_IMAGES
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def test_no_image(tmp_path: Path) -> None:
    for content in (b'', b'<html>not found</html>'):
        with pytest.raises(ImageError, match='no image of a known format'):
            open_image(content)
    with pytest.raises(ImageError, match='no such file'):
        open_image(tmp_path / 'photo.jpg')


def test_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header is enough to refuse it; a JPEG counts as it is decoded."""
    monkeypatch.setattr(images, 'MAX_PIXELS', 100_000)
    with pytest.raises(ImageError, match='1000x1000.*100000'):
        open_image(encoded(Image.new('1', (1000, 1000)), 'PNG'))
    assert open_image(encoded(Image.new('RGB', (1000, 1000)), 'JPEG'), min_side=60).size == (125, 125)


def test_limits_of_pillow() -> None:
    """Its own are lower and for files, not for what is decoded; they are as they were afterwards."""
    before = Image.MAX_IMAGE_PIXELS
    large = encoded(Image.new('1', (10000, 10000)), 'PNG')  # from 89 million pixels on Pillow warns
    assert open_image(large).size == (10000, 10000)
    larger = 16000, 12000  # and from twice that on it refuses
    assert open_image(encoded(Image.new('L', larger), 'JPEG'), min_side=100).size == (2000, 1500)
    with pytest.raises(ImageError, match='16000x12000.*134217728'):
        open_image(encoded(Image.new('1', larger), 'PNG'))
    assert before == Image.MAX_IMAGE_PIXELS is not None


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """That open images at once find the same, and leave Pillow's limits as they were."""
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    before = Image.MAX_IMAGE_PIXELS
    large = encoded(Image.new('1', (10000, 10000)), 'PNG')
    larger = encoded(Image.new('1', (16000, 12000)), 'PNG')

    def found(content: bytes) -> Any:
        try:
            return open_image(content).size
        except ImageError as e:
            return str(e)

    contents = [larger, large, encoded(photo(), 'PNG')[:5000], larger]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(found, contents))
    assert results[1] == (10000, 10000)
    assert results[0] == results[3] == '16000x12000 pixels, of 134217728 at most'
    assert results[2].startswith('damaged: image file is truncated')
    assert ImageFile.LOAD_TRUNCATED_IMAGES
    assert before == Image.MAX_IMAGE_PIXELS


def test_what_was_opened_elsewhere() -> None:
    """By Pillow, which is left as it is, or by others as an array."""
    image = Image.open(io.BytesIO(encoded(photo(), 'JPEG')))
    opened = open_image(image, min_side=20)
    assert (opened.size, image.size) == (photo().size, photo().size)
    assert open_image(np.asarray(opened)).tobytes() == opened.tobytes()
    for array in (np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ImageError, match=re.escape('[H, W, 3]')):
            open_image(array)


def test_a_phone_photo_by_its_path(tmp_path: Path) -> None:
    """What a snippet opens is what training sees: upright, and on white where it is transparent."""
    sideways = photo().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    sideways.save(tmp_path / 'phone.jpg', exif=exif, quality=95)
    opened = xception_hub.open_image(str(tmp_path / 'phone.jpg'))
    assert opened.size == photo().size
    cell = dict(path=str(tmp_path / 'phone.jpg'), bytes=None)
    split = Split('train', [{'image': cell}], np.arange(1), np.zeros(1, np.int64))
    assert split.image(0).tobytes() == opened.tobytes()
    Image.new('RGBA', (8, 8), (0, 0, 0, 0)).save(tmp_path / 'transparent.png')
    assert xception_hub.open_image(tmp_path / 'transparent.png').getpixel((0, 0)) == (255, 255, 255)
