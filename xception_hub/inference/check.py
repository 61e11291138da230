"""Comparison of a function (an engine or an exported file) with the model that it replaces: outputs and speed."""

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptimizeError, in_one_line
from ..timing import rounds, timed
from .folding import folded
from .photo_batches import Photos

# Largest L2 norm of the difference of an image's outputs, relative to that of the original's. Measured with the genuine
# weights: 1e-6 in float32, 2e-2 in bf16. A GPU rounds the factors of float32 to tf32 where torch allows it.
TOLERANCES = {'fp32': 1e-4, 'tf32': 5e-3, 'bf16': 5e-2}
LEAST_COSINE = 0.9  # smallest cosine of the last outputs of an image that counts as the same in int8
BATCH_SIZE = 8
QUARTERS = (3, 5)  # quarters of the example's size; the first of these sizes that the model takes is checked, too
ROUNDS, SECONDS = 10, 4.0  # functions take turns until one of these limits is reached
CALLED_WITH = 4  # images in each turn of a function, at least
BUSY = 1.5  # if the median of a function's times is this many times the least, the machine was busy
MEASURED_BUSY = 'The machine was busy with other work: the measured speed is not reliable.'

Function = Callable[[Tensor], Any]
Shape = tuple[int, ...]


class OutputShapes:
    """Finds type and shapes of a model's outputs for images of any shape, without computing values.

    Args:
        model: The model. It is not changed.
        example: Images [B, C, H, W].
        outputs: The model's outputs for the example, tensors [B, ...].
    """

    def __init__(self, model: nn.Module, example: Tensor, outputs: Any) -> None:  # example [B, C, H, W]
        self._known = {tuple(example.shape): _described(outputs)}
        self._model: nn.Module | None = copy.deepcopy(model).to('meta')
        try:
            self._model(example.to('meta'))
        except Exception:  # the model needs values, which tensors on the meta device do not have
            self._model = None

    def __call__(self, shape: Shape) -> tuple[Callable[..., Any], list[Shape]]:
        """Returns the type of the outputs (Tensor, list or tuple) and their shapes.

        Raises:
            OptimizeError: The model needs values, and this is not the example's shape.
            Exception: The model refuses this shape.
        """
        if shape not in self._known:
            if self._model is None:
                raise OptimizeError(f'The model was tried with images {list(*self._known)} only, not {list(shape)}.')
            with torch.no_grad():
                self._known[shape] = _described(self._model(torch.empty(shape, device='meta')))
        return self._known[shape]


@dataclass(frozen=True)
class Comparison:
    """Difference between a function and its model.

    Attributes:
        photos: Description of the images that both were run on.
        difference: Largest L2 norm of the difference of an image's outputs, relative to that of the model's.
        top1_agreement: Share of the images for which both have the same largest output; None if the only outputs are
            features.
        feature_cosine: Smallest cosine between the two last outputs of an image.
    """

    photos: str
    difference: float
    top1_agreement: float | None
    feature_cosine: float


class Checked(NamedTuple):
    """A function that computes the same as a model.

    Attributes:
        run: Images [B, C, H, W] -> outputs [B, ...].
        comparison: Its difference from the model.
        any_size: Whether it computes the same for images of other sizes than the example's.
        free_axes: Axes of the images whose sizes may differ from the example's, if a file states them.
    """

    run: Function
    comparison: Comparison
    any_size: bool
    free_axes: Sequence[str] = ()


class Reference:
    """Outputs of a model, with which functions are compared.

    Args:
        model: The original, in evaluation mode. It is not changed.
        example: Images [B, C, H, W].
        precision: Precision of the functions: 'fp32', 'bf16' or 'int8'.
        photos: Images [N, C, H, W] for the comparison, of the example's size.

    Attributes:
        output_shapes: Shapes of the original's outputs.
        folded: Copy of the model, with batch normalization folded into the convolutions if possible.
        notes: The reason if it is not possible.
        other_size: Height and width in pixels of another size that the original takes; None if it takes only one.
        tolerance: Largest difference that counts as the same; None in int8, where the cosine decides.

    Raises:
        OptimizeError: The model does not take the example, or its outputs are not finite.
    """

    # example [B, C, H, W]
    def __init__(self, model: nn.Module, example: Tensor, precision: str, photos: Photos) -> None:
        self.model, self.example, self.precision, self.photos = model, example, precision, photos
        try:
            with torch.no_grad():
                self.output_shapes = OutputShapes(model, example, model(example))
        except Exception as e:
            raise OptimizeError(f'The model does not take the example {list(example.shape)}: {in_one_line(e)}') from e
        tf32 = example.is_cuda and precision == 'fp32' and torch.backends.cudnn.allow_tf32
        self.tolerance = TOLERANCES.get('tf32' if tf32 else precision)
        height, width = example.shape[2:]
        sizes = [(height * quarters // 4, width * quarters // 4 + 1) for quarters in QUARTERS]  # each of another parity
        self.other_size = next(filter(self.takes, sizes), None)
        self._images = [photos.images]
        if self.other_size is not None:
            self._images.append(F.interpolate(photos.images[:1], self.other_size, mode='bilinear'))
        self._expected = [_outputs(model, images, BATCH_SIZE) for images in self._images]
        if not all(output.isfinite().all() for outputs in self._expected for output in outputs):
            raise OptimizeError(f'The outputs of the model for {photos.words} are not finite. Check its weights.')
        self.folded, self.notes = folded(model)

    def checked(self, run: Function, batch_size: int = BATCH_SIZE) -> Checked:
        """Compares a function with the original.

        Raises:
            OptimizeError: Their outputs differ by more than the precision allows.
            Exception: The function does not take the images.
        """
        first, *others = zip(self._images, self._expected)
        comparison = self._compared(run, *first, batch_size)
        if not self._is_same(comparison):
            found = (
                f'the relative difference is {comparison.difference:.1e}, above {self.tolerance:.0e} ({self.precision})'
                if self.tolerance
                else f'the smallest cosine of features is {comparison.feature_cosine:.3f}, below {LEAST_COSINE}'
            )
            raise OptimizeError(f'its outputs differ from those of the model. On {self.photos.words}, {found}.')
        try:
            any_size = all(self._is_same(self._compared(run, *other, 1)) for other in others)
        except Exception:  # of the engine, at a size that it was not made for
            any_size = False
        return Checked(run, comparison, any_size)

    def _is_same(self, comparison: Comparison) -> bool:
        if self.tolerance is None:
            return comparison.feature_cosine >= LEAST_COSINE
        return comparison.difference <= self.tolerance

    def _compared(
        self, function: Function, images: Tensor, expected: Sequence[Tensor], batch_size: int
    ) -> Comparison:  # images [N, C, H, W], expected [N, ...] each
        found = _outputs(function, images, batch_size)
        difference = relative_error(found, expected)
        if difference == math.inf:
            return Comparison(self.photos.words, difference, None, -1.0)
        agreement = None
        if len(found) > 1:
            agreement = float((found[0].argmax(1) == expected[0].argmax(1)).double().mean())
        cosine = F.cosine_similarity(found[-1].double().flatten(1), expected[-1].double().flatten(1)).min()
        return Comparison(self.photos.words, difference, agreement, float(cosine))

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether the original takes images of this height and width."""
        try:
            self.output_shapes((1, self.example.shape[1], *size))
        except Exception:  # the images are too small, or the head takes only one size
            return False
        return True

    def measured(self, functions: Mapping[str, Function]) -> tuple[dict[str, float], list[str]]:
        """Seconds of each function for the example, in turn, and a note if the machine was busy.

        It takes the least of several times, because other work on the machine can only add to it.
        """
        calls = max(1, CALLED_WITH // len(self.example))
        with torch.no_grad():
            steps = {
                name: timed(partial(function, self.example), self.example.device, calls)
                for name, function in functions.items()
            }
            taken = rounds(steps, ROUNDS, SECONDS)
        busy = any(statistics.median(seconds) > BUSY * min(seconds) for seconds in taken.values())
        return {name: min(seconds) for name, seconds in taken.items()}, [MEASURED_BUSY] * busy


def built(name: str, build: Callable[[], Checked]) -> Checked:
    """Calls a function that lets a model run elsewhere, and names the place in any error.

    Raises:
        OptimizeError: The place cannot run the model, or its outputs differ.
    """
    try:
        with torch.no_grad():
            return build()
    except OptimizeError as e:
        raise OptimizeError(f'{name} cannot be used: {e}') from e
    except Exception as e:  # of all those packages
        raise OptimizeError(f'{name} cannot run this model: {in_one_line(e)}') from e


def _outputs(function: Function, images: Tensor, batch_size: int) -> list[Tensor]:
    """Returns each output for images [N, C, H, W] as one tensor [N, ...]."""
    with torch.no_grad():
        batches = [as_list(function(batch)) for batch in images.split(batch_size)]
    return [torch.cat(outputs) for outputs in zip(*batches)]


def as_list(outputs: Any) -> list[Tensor]:
    """Returns one or several outputs [B, ...] of a model as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest L2 norm of the difference of an image's outputs, relative to that of those expected.

    Args:
        found: Tensors [B, ...].
        expected: Tensors [B, ...]. If number or shapes differ, the result is infinity.
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
