"""What a model computes, for functions that are to compute the same."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptimizeError, in_one_line

# Largest L2 norm of the difference of an image's outputs, relative to that of the original's. Measured with the genuine
# weights: 1e-6 in float32, 2e-2 in bf16. A GPU rounds the factors of float32 to tf32 where torch allows it.
TOLERANCES = {'fp32': 1e-4, 'tf32': 5e-3, 'bf16': 5e-2}
LEAST_COSINE = 0.9  # of each image's last output in int8; below, they are something else
BATCH_SIZE = 8
QUARTERS = (3, 5)  # of the example's size: two other sizes, of which the first that the model takes is checked, too

Function = Callable[[Tensor], Any]
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


@dataclass(frozen=True)
class Comparison:
    """How far a function is from its model.

    Attributes:
        photos: The images that both were run on, in words.
        difference: Largest L2 norm of the difference of an image's outputs, relative to that of the model's.
        top1_agreement: Share of the images for which both have the same largest output; None if the only outputs are
            features.
        feature_cosine: Smallest cosine between the two last outputs of an image.
    """

    photos: str
    difference: float
    top1_agreement: float | None
    feature_cosine: float


class Reference:
    """What a model computes of images, and how far a function is from it.

    Args:
        model: The original, in evaluation mode. It stays as it is.
        example: Images [B, C, H, W].
        precision: What functions will compute in.
        images: Images [N, C, H, W] to compare them on, of the example's size.
        words: What these are, in words.

    Attributes:
        output_shapes: Shapes of the original's outputs.
        other_size: Height and width of another size that the original takes; None if it takes one only.
        tolerance: Largest difference that counts as the same; None in int8, where the cosine decides.

    Raises:
        OptimizeError: The model does not take the example, or there are no finite numbers.
    """

    def __init__(self, model: nn.Module, example: Tensor, precision: str, images: Tensor, words: str) -> None:
        self.model, self.example, self.precision, self.words = model, example, precision, words
        try:
            with torch.no_grad():
                self.output_shapes = OutputShapes(model, example, model(example))
        except Exception as e:
            raise OptimizeError(f'The model does not take the example {list(example.shape)}: {in_one_line(e)}') from e
        tf32 = example.is_cuda and precision == 'fp32' and torch.backends.cudnn.allow_tf32
        self.tolerance = TOLERANCES.get('tf32' if tf32 else precision)
        self.other_size = self._other_size()
        self._images = [images]
        if self.other_size is not None:
            self._images.append(F.interpolate(images[:1], self.other_size, mode='bilinear'))
        self._expected = [_outputs(model, images, BATCH_SIZE) for images in self._images]
        if not all(output.isfinite().all() for outputs in self._expected for output in outputs):
            raise OptimizeError(f'The model does not compute finite numbers of {words}: check its weights.')

    def compare(self, function: Function, batch_size: int = BATCH_SIZE) -> tuple[Comparison, bool]:
        """How far a function is from the original, and whether it is the same for images of another size, too."""
        first, *others = zip(self._images, self._expected)
        comparison = self._compared(function, *first, batch_size)
        try:
            return comparison, all(self.is_same(self._compared(function, *other)) for other in others)
        except Exception:  # of the engine, at a size that it was not made for
            return comparison, False

    def is_same(self, comparison: Comparison) -> bool:
        """Whether a function computes what the original does, as far as its precision allows."""
        if self.tolerance is None:
            return comparison.feature_cosine >= LEAST_COSINE
        return comparison.difference <= self.tolerance

    def _compared(
        self, function: Function, images: Tensor, expected: Sequence[Tensor], batch_size: int = 1
    ) -> Comparison:
        found = _outputs(function, images, batch_size)
        difference = relative_error(found, expected)
        if difference == math.inf:
            return Comparison(self.words, difference, None, -1.0)
        agreement = None
        if len(found) > 1:
            agreement = float((found[0].argmax(1) == expected[0].argmax(1)).double().mean())
        cosine = F.cosine_similarity(found[-1].double().flatten(1), expected[-1].double().flatten(1)).min()
        return Comparison(self.words, difference, agreement, float(cosine))

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether the original takes images of this height and width."""
        try:
            self.output_shapes((1, self.example.shape[1], *size))
        except Exception:  # of the original: they are smaller than it takes, or its head has one size
            return False
        return True

    def _other_size(self) -> tuple[int, int] | None:
        """Height and width of another size that the original takes; None if it takes one only."""
        height, width = self.example.shape[2:]
        sizes = [(height * quarters // 4, width * quarters // 4 + 1) for quarters in QUARTERS]  # of another parity each
        return next(filter(self.takes, sizes), None)


def _outputs(function: Function, images: Tensor, batch_size: int) -> list[Tensor]:
    """Each output of images, as one tensor [N, ...]."""
    with torch.no_grad():
        batches = [as_list(function(batch)) for batch in images.split(batch_size)]
    return [torch.cat(outputs) for outputs in zip(*batches)]


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
