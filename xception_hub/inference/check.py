"""What a model computes, for functions that are to compute the same."""

import copy
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import ImageError, OptimizeError, in_one_line
from ..images import open_image, sample_photos

# Largest L2 norm of the difference of an image's outputs, relative to that of the original's. Measured with the genuine
# weights: 1e-6 in float32, 2e-2 in bf16. A GPU rounds the factors of float32 to tf32 where torch allows it.
TOLERANCES = {'fp32': 1e-4, 'tf32': 5e-3, 'bf16': 5e-2}
CHECKED_PHOTOS = 4
QUARTERS = (3, 5)  # of the example's size: two other sizes, of which the first that the model takes is checked, too

Function = Callable[[Tensor], Any]
Photo = str | os.PathLike[str] | Image.Image
Shape = tuple[int, ...]


class OutputShapes:
    """Type and shapes of a model's outputs for images of any shape, without computing values.

    Args:
        model: The model, which stays as it is.
        example: Images [B, C, H, W].
        outputs: What the model returns for them.
    """

    def __init__(self, model: nn.Module, example: Tensor, outputs: Any) -> None:
        self._known = {tuple(example.shape): _described(outputs)}
        self._model: nn.Module | None = copy.deepcopy(model).to('meta')
        try:
            self._model(example.to('meta'))
        except Exception:  # it looks at values, which torch's meta device does not have
            self._model = None

    def __call__(self, shape: Shape) -> tuple[Callable[..., Any], list[Shape]]:
        """The type is Tensor, list or tuple.

        Raises:
            OptimizeError: The model computes only with values, and this is not the example's shape.
            Exception: What the model raises for this shape.
        """
        if shape not in self._known:
            if self._model is None:
                raise OptimizeError(f'This model is known for images {list(*self._known)} only, not for {list(shape)}.')
            with torch.no_grad():
                self._known[shape] = _described(self._model(torch.empty(shape, device='meta')))
        return self._known[shape]


class Reference:
    """What a model computes of images, and how far a function is from it.

    Args:
        model: The original, in evaluation mode. It stays as it is.
        example: Images [B, C, H, W].
        precision: What functions will compute in.
        photos: Photos to compare them on; None for one that Matplotlib brings along.

    Attributes:
        output_shapes: Shapes of the original's outputs.
        tolerance: Largest difference that counts as the same.
        checked_on: The images that functions are compared on, in words.

    Raises:
        OptimizeError: The model does not take the example, a photo cannot be read, or there are no finite numbers.
    """

    def __init__(
        self, model: nn.Module, example: Tensor, precision: str, photos: Sequence[Photo] | None = None
    ) -> None:
        self.model, self.example, self.precision = model, example, precision
        try:
            with torch.no_grad():
                self.output_shapes = OutputShapes(model, example, model(example))
        except Exception as e:
            raise OptimizeError(f'The model does not take the example {list(example.shape)}: {in_one_line(e)}') from e
        tf32 = example.is_cuda and precision == 'fp32' and torch.backends.cudnn.allow_tf32
        self.tolerance = TOLERANCES['tf32' if tf32 else precision]
        prepared = self._prepared(photos)
        self.checked_on = 'the example' if prepared is None else f'{len(prepared)} photos'
        self._images = [example[:CHECKED_PHOTOS] if prepared is None else prepared]
        if (size := self._other_size()) is not None:
            self._images.append(F.interpolate(self._images[0][:1], size, mode='bilinear'))
        with torch.no_grad():
            self._expected = [as_list(model(images)) for images in self._images]
        if not all(output.isfinite().all() for outputs in self._expected for output in outputs):
            raise OptimizeError(f'The model does not compute finite numbers of {self.checked_on}: check its weights.')

    def difference(self, function: Function) -> tuple[float, bool]:
        """How far a function is from the original, and whether it is that for images of another size, too.

        Returns:
            The largest L2 norm of the difference of an image's outputs, relative to that of the original's.
        """
        with torch.no_grad():
            found = relative_error(as_list(function(self._images[0])), self._expected[0])
            try:
                others = [relative_error(as_list(function(x)), y) for x, y in zip(self._images[1:], self._expected[1:])]
            except Exception:  # of the engine, at a size that it was not made for
                return found, False
        return found, all(error <= self.tolerance for error in others)

    def _prepared(self, photos: Sequence[Photo] | None) -> Tensor | None:
        """Photos as the model takes them, of the example's size; None if there are none."""
        shape = self.example.shape[1:]
        opened = [_opened(photo) for photo in photos or ()][:CHECKED_PHOTOS]
        if photos is None and shape[0] == 3:
            opened = sample_photos()[:CHECKED_PHOTOS]
        if not opened:
            return None
        config = timm.data.resolve_data_config({'input_size': tuple(shape)}, model=self.model)
        transform = timm.data.create_transform(**config)
        return torch.stack([transform(photo) for photo in opened]).to(self.example.device)

    def _other_size(self) -> tuple[int, int] | None:
        """Height and width of another size that the original takes; None if it takes one only."""
        _, channels, height, width = self.example.shape
        for quarters in QUARTERS:
            size = (height * quarters // 4, width * quarters // 4 + 1)  # of another parity each
            try:
                self.output_shapes((1, channels, *size))
            except Exception:  # of the original: it is smaller than it takes, or not its only one
                continue
            return size
        return None


def as_list(outputs: Any) -> list[Tensor]:
    """A model's outputs, of which there are one or several."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest L2 norm of the difference of an image's outputs, relative to that of those expected.

    Args:
        found: Tensors [B, ...].
        expected: As many; infinity if they are of other shapes.
    """
    if [output.shape for output in found] != [output.shape for output in expected]:
        return math.inf
    pairs = [(f.double().flatten(1), e.double().flatten(1)) for f, e in zip(found, expected)]
    errors = [(f - e).norm(dim=1) / e.norm(dim=1).clamp_min(torch.finfo().tiny) for f, e in pairs]
    return float(torch.cat(errors).max())


def _described(outputs: Any) -> tuple[Callable[..., Any], list[Shape]]:
    if not isinstance(outputs, Tensor | list | tuple) or not all(isinstance(o, Tensor) for o in as_list(outputs)):
        raise OptimizeError(f'it returns a {type(outputs).__name__}, not a tensor or a list of tensors')
    return type(outputs), [tuple(output.shape) for output in as_list(outputs)]


def _opened(photo: Photo) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo.convert('RGB')
    try:
        return open_image(Path(photo))
    except ImageError as e:
        raise OptimizeError(f'{photo} cannot be compared on: {e}') from e
