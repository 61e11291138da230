"""Image files as a network should see them: upright, in RGB, with nothing invented where a file is damaged."""

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

from .errors import ImageError

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

NO_IMAGES = {'BUFR', 'GRIB', 'HDF5', 'MPEG'}  # formats that Pillow recognises and cannot decode
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, format in Image.registered_extensions().items()
    if format in Image.OPEN and format not in NO_IMAGES
)
MAX_PIXELS = 2**27  # 134 million: 400 MB in RGB; ordinary collections hold files that declare far more
DRAFT_MARGIN = 2  # a JPEG is decoded at no less than this times the size it is needed at, so that resizing averages
# What systems put beside photos: Synology's thumbnails, recycle bins, macOS' copies.
SYSTEM_NAMES = ('.', '@', '#recycle', '$RECYCLE', '__MACOSX', '__pycache__', 'lost+found', 'System Volume Information')
LFS_POINTER = b'version https://git-lfs'
BACKGROUND = (255, 255, 255)  # below transparent pixels, whose own colours are arbitrary
ImageSource = bytes | str | os.PathLike[str] | Image.Image | np.ndarray


def open_image(
    source: ImageSource, min_side: int | None = None, grey_maximum: int | None = None, max_pixels: int | None = None
) -> Image.Image:
    """Opens an image file as fine-tuning does, completely decoded. Any number of threads may do so at once.

    Args:
        source: The file's content or its path, or what was opened elsewhere: Pillow's image, or [H, W, 3] in uint8.
        min_side: Shorter side in pixels that the image will be resized to. A larger JPEG is then decoded at a fraction
            of its size, which is several times faster and differs little after resizing.
        grey_maximum: Value that is white in grey images of more than 8 bits: 4095 for 12 bits, 65535 for 16. None is
            65535, but only for images that use at least a quarter of these values.
        max_pixels: Pixels of the largest image that is opened; None is `MAX_PIXELS`.

    Returns:
        In mode RGB: turned upright as its EXIF says, on white where it is transparent, 16 bits scaled to 8, CMYK by its
        own profile. Of an animation the first frame.

    Raises:
        ImageError: It is no image, truncated, damaged, larger than `max_pixels`, or has values that mean no colours.
    """
    try:
        with _LIMITS, _opened(source) as image:
            if min_side and image.format == 'JPEG' and not isinstance(source, Image.Image):
                image.draft(image.mode, (DRAFT_MARGIN * min_side, DRAFT_MARGIN * min_side))
            if image.width * image.height > (most := max_pixels or MAX_PIXELS):
                raise ImageError(f'{image.width}x{image.height} pixels, of {most} at most')
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), grey_maximum)
    except ImageError:
        raise
    except FileNotFoundError as e:
        raise ImageError('there is no such file') from e
    except Image.UnidentifiedImageError as e:
        if not isinstance(source, (Image.Image, np.ndarray)) and is_lfs_pointer(source):
            raise ImageError('a pointer of Git LFS: git lfs pull fetches the image') from e
        raise ImageError('no image of a known format') from e
    except Exception as e:  # Pillow's decoders raise whatever a damaged file leads them to
        raise ImageError(f'damaged: {e}' if str(e) else f'damaged: {type(e).__name__}') from e


def walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each folder from this one down, with the names of the folders and the files in it, sorted as strings.

    Hidden files and those of `SYSTEM_NAMES` are left out. Links to folders are followed, but not back to one above.
    """
    above |= {os.path.realpath(folder)}
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(SYSTEM_NAMES)), key=lambda e: e.name)
    inside = [entry.name for entry in entries if entry.is_dir()]
    inside = [name for name in inside if os.path.realpath(os.path.join(folder, name)) not in above]
    yield folder, inside, [entry.name for entry in entries if not entry.is_dir()]
    for name in inside:
        yield from walk(os.path.join(folder, name), above)


def find_photos(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files in a folder and below it, by their suffixes; each folder's own first, sorted as strings.

    Raises:
        OSError: There is no such folder.
    """
    return [
        Path(place, name)
        for place, _, files in walk(os.fspath(folder))
        for name in files
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    ]


def sample_photos() -> list[Image.Image]:
    """A photo that Matplotlib brings along, whole and in nine parts; none without Matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    path = Path(matplotlib.get_data_path()) / 'sample_data' / 'grace_hopper.jpg'
    if not path.is_file():
        return []
    photo = open_image(path)
    width, height = photo.size
    corners = [(x * width // 4, y * height // 4) for x in range(3) for y in range(3)]
    return [photo, *(photo.crop((x, y, x + width // 2, y + height // 2)) for x, y in corners)]


def is_lfs_pointer(source: bytes | str | os.PathLike[str]) -> bool:
    """Whether a file is what Git LFS leaves in a clone in place of the file itself."""
    if isinstance(source, bytes):
        return source.startswith(LFS_POINTER)
    with open(source, 'rb') as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


class _Limits:
    """Makes truncated files an error, whatever another library asked of Pillow, while any thread opens an image.

    Pillow has one limit of pixels for all threads. It is that of images within the image, such as an icon's; the size
    of the image itself is left to `open_image`.
    """

    def __init__(self) -> None:
        self.lock, self.threads = threading.Lock(), 0
        self.before: tuple[bool, int | None] = False, None

    def __enter__(self) -> None:
        with self.lock:
            if not self.threads:
                self.before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, MAX_PIXELS
            self.threads += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.threads -= 1
            if not self.threads:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self.before

    def open(self, file: BinaryIO) -> Image.Image:
        """What a file's header says, of whatever size."""
        file.read(1)  # a slow file system is waited for outside of the lock
        file.seek(0)
        with self.lock:
            Image.MAX_IMAGE_PIXELS = None
            try:
                return Image.open(file)
            finally:
                Image.MAX_IMAGE_PIXELS = MAX_PIXELS


_LIMITS = _Limits()


@contextmanager
def _opened(source: ImageSource) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.shape[2:] != (3,):
            raise ImageError(f'an array {list(source.shape)} of {source.dtype} instead of [H, W, 3] in uint8')
        yield Image.fromarray(source)
    else:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb') as file,
            _LIMITS.open(file) as image,
        ):
            yield image


def _to_rgb(image: Image.Image, grey_maximum: int | None) -> Image.Image:
    if image.mode == 'F' or image.mode.startswith('I'):
        return Image.fromarray(_to_bytes(image, grey_maximum)).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        background = Image.new('RGBA', image.size, BACKGROUND)
        return Image.alpha_composite(background, image).convert('RGB')
    if image.mode == 'CMYK' and image.info.get('icc_profile'):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info['icc_profile']))
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile('sRGB'), outputMode='RGB')
        assert converted is not None  # only in place there is nothing to return
        return converted
    return image.convert('RGB')


def _to_bytes(image: Image.Image, grey_maximum: int | None) -> np.ndarray:
    """Grey values of more than eight bits, scaled to 0..255; Pillow would clip them."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    white = grey_maximum or 2**16 - 1
    if image.mode.startswith('I') and low >= 0 and high <= white:
        if grey_maximum is None and 0 < high < 2**14:
            raise ImageError(
                f'grey values up to {high} in 16 bits: say what is white, 4095 (12 bits) or 65535, with --grey-maximum'
            )
        return (values * (255 / white)).round().astype(np.uint8)
    if image.mode == 'F' and low >= 0 and high <= 255:
        return (values * (255 if high <= 1 else 1)).round().astype(np.uint8)
    raise ImageError(f'grey values from {low} to {high}, which are neither bytes, 0..{white} nor 0..1')
