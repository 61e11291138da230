"""Makes a model faster by the fastest engine on this machine, and checks its outputs against the original."""

import copy
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import OptimizeError
from ..timing import lacks_bf16
from . import engine_choices
from .check import Reference, as_list, built
from .engines import ENGINES, Engine
from .photo_batches import Photo, Photos, photos_like

AUTO = 'auto'
ORIGINAL = 'original'
PRECISIONS = ('fp32', 'bf16')
COPIED = ('pretrained_cfg', 'default_cfg', 'num_classes', 'num_features', 'in_chans', 'feature_info')


class Recipe(NamedTuple):
    """What an optimized model is made from.

    Attributes:
        model, example, engine, precision, choices: Arguments of `optimize`.
        photos: The images for the comparison.
    """

    model: nn.Module
    example: Tensor
    engine: str
    precision: str
    photos: Photos
    choices: Path | None


class OptimizedModel:
    """A network that an engine runs. It takes the same images and returns the same outputs, without gradients.

    `copy` and `pickle` make it anew from a copy of the original, which it keeps: with the same engine on the same
    machine, and elsewhere with the engine that `optimize` chooses there for the same arguments.

    Attributes:
        engine: Name of the engine.
        precision: Precision of the computation. Images and outputs are always float32.
        difference: Largest L2 norm of the difference of an image's outputs from the original's, relative to theirs.
        checked_on: Description of the images of this comparison.
        any_size: Whether it takes images of other sizes than the example's.
        seconds: Least seconds of each engine for the example, and of the unchanged model as 'original'.
        notes: Engines and steps that were left out, with their reasons.
        pretrained_cfg, num_classes and others: Attributes of the original, if it has them.
    """

    pretrained_cfg: dict[str, Any]
    num_classes: int
    _recipe: Recipe

    def __init__(self, engine: str, reference: Reference) -> None:
        _check_engine(engine, reference.example.device.type, reference.precision)
        self._function, comparison, self.any_size, _ = built(engine, partial(ENGINES[engine].build, reference))
        self._lock = threading.Lock()  # an engine supports one call at a time
        self._output_shapes = reference.output_shapes
        self._example, self._device = list(reference.example.shape), reference.example.device
        self.engine, self.precision = engine, reference.precision
        self.difference, self.checked_on = comparison.difference, comparison.photos
        self._key = engine_choices.key_of(reference)
        self.seconds: dict[str, float] = {}
        self.notes = [*reference.notes]
        self.__dict__.update({name: vars(reference.model)[name] for name in COPIED if name in vars(reference.model)})

    @property
    def gain(self) -> float:
        """Speed relative to the original, for images of the example's shape."""
        return self.seconds[ORIGINAL] / self.seconds[self.engine]

    def __call__(self, images: Tensor) -> Any:
        """Computes the outputs of the original, [B, ...] each.

        Args:
            images: [B, C, H, W] in float32, on the example's device.

        Raises:
            OptimizeError: The images have another type or device, or a size that the engine does not take.
            Exception: The original refuses images of this shape.
        """
        if images.dtype != torch.float32 or images.device != self._device:
            raise OptimizeError(
                f'The images are {images.dtype} on {images.device}, but this model takes torch.float32 on '
                f"{self._device}: pass images.to('{self._device}', torch.float32)."
            )
        kind, shapes = self._output_shapes(tuple(images.shape))
        if not self.any_size and list(images.shape[1:]) != self._example[1:]:
            raise OptimizeError(
                f'{self.engine} was made for images {self._example}, and cannot take {list(images.shape)}. Optimize '
                f"with an example of this size, or with engine='pytorch'."
            )
        if not len(images):
            outputs = [images.new_empty(shape) for shape in shapes]
        else:
            with self._lock, torch.no_grad():
                outputs = as_list(self._function(images.detach()))
        if [tuple(output.shape) for output in outputs] != shapes:
            found = [list(output.shape) for output in outputs]
            raise OptimizeError(
                f'{self.engine} returns {found} for images {list(images.shape)}, and the original {shapes}. Optimize '
                f"with engine='pytorch'."
            )
        return outputs[0] if kind is Tensor else kind(outputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self._recipe, {self._key: dict(engine=self.engine, seconds=self.seconds)})

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}({self.engine}, {self.precision}: {self.gain:.2f} times as fast as the original at '
            f'{self._example}, differs by {self.difference:.1e} on {self.checked_on})'
        )


def optimize(
    model: nn.Module,
    example: Tensor,
    engine: str = AUTO,
    precision: str = 'fp32',
    *,
    photos: Sequence[Photo] | None = None,
    choices: Path | None = None,
) -> OptimizedModel:
    """Makes a model faster on this machine, and checks that it still computes the same.

    The function folds batch normalization into the convolutions, uses channels_last, and chooses the fastest installed
    engine for the example, which takes 15 to 20 seconds on two cores. The choice is cached. On a CPU, Inductor is tried
    only if named, because it takes minutes to build (245 s on two cores).

    Args:
        model: A timm model in evaluation mode, in float32. It is not changed.
        example: Images [B, C, H, W] in float32, of the usual shape, on the model's device. Other batches and sizes work
            afterwards.
        engine: 'auto', or the name of an engine: 'pytorch', 'inductor'; on a CPU also 'onnxruntime', 'openvino'; on a
            GPU also 'cudagraphs', 'tensorrt'.
        precision: 'fp32', or 'bf16' if the device supports it.
        photos: Paths or images for the comparison; the first four are used. None means a photo from Matplotlib, or the
            example, if Matplotlib is not installed or the images are not RGB.
        choices: JSON file with the cached choices. None means a file in the cache of the Hugging Face libraries.

    Raises:
        OptimizeError: An argument is not possible, or no engine computes the same as the model.
    """
    _check(model, example, precision, photos)
    if engine != AUTO:
        _check_engine(engine, example.device.type, precision)
    recipe = Recipe(model, example, engine, precision, photos_like(example, model, photos), choices)
    result = _made(recipe)
    # copies, because the caller may change them
    kept = recipe.photos._replace(images=recipe.photos.images.detach().clone())
    result._recipe = recipe._replace(model=copy.deepcopy(model), example=example.detach().clone(), photos=kept)
    return result


def _made(recipe: Recipe, choices: Mapping[str, Any] = {}) -> OptimizedModel:
    """Makes a model from its recipe, by an engine that was chosen earlier if possible.

    Args:
        recipe: The recipe.
        choices: Choices in addition to those in the recipe's file; see `engine_choices`.
    """
    reference = Reference(recipe.model, recipe.example, recipe.precision, recipe.photos)
    result = _chosen(reference, recipe.engine, recipe.choices, choices)
    result._recipe = recipe
    return result


def _chosen(reference: Reference, engine: str, file: Path | None, choices: Mapping[str, Any]) -> OptimizedModel:
    device, precision = reference.example.device.type, reference.precision
    tried, known, notes = [engine], dict[str, Any](), list[str]()
    key = engine_choices.key_of(reference)
    if engine == AUTO:
        known, notes = engine_choices.read(file)
        tried = [name for name, row in ENGINES.items() if device in row.auto and precision in row.precisions]
    if entry := choices.get(key) or known.get(key):
        with suppress(OptimizeError):  # it is chosen anew if it computes something else by now
            result = OptimizedModel(entry['engine'], reference)
            result.seconds = entry['seconds']
            return result
    results = dict[str, OptimizedModel]()
    for name in tried:
        try:
            results[name] = OptimizedModel(name, reference)
        except OptimizeError as e:
            notes.append(str(e))
    if not results:
        raise OptimizeError(' '.join([*['No engine computes the same as the model.'] * (engine == AUTO), *notes]))
    seconds, busy = reference.measured({ORIGINAL: reference.model, **results})
    best = min(results.values(), key=lambda result: seconds[result.engine])
    if engine == AUTO and not busy:
        known[key] = dict(engine=best.engine, seconds=seconds)
        notes += engine_choices.write(file, known)
    best.seconds, best.notes = seconds, [*reference.notes, *notes, *busy]
    return best


def _check(model: nn.Module, example: Tensor, precision: str, photos: Sequence[Photo] | None) -> None:
    if model.training:  # example must be [B, C, H, W]
        raise OptimizeError('The model is in training mode, where its outputs differ: call model.eval() first.')
    if example.dim() != 4 or not len(example):
        raise OptimizeError(f'The example is {list(example.shape)}, not images [batch, channels, height, width].')
    parameter = next(model.parameters(), example)
    if not example.dtype == parameter.dtype == torch.float32:
        raise OptimizeError(
            f'The example is {example.dtype} and the model {parameter.dtype}, but both must be torch.float32: call '
            f'.float(). The argument precision chooses that of the computation.'
        )
    if example.device != parameter.device:
        raise OptimizeError(
            f'The example is on {example.device}, but the model on {parameter.device}: pass '
            f"example.to('{parameter.device}')."
        )
    if precision not in PRECISIONS:
        raise OptimizeError(
            f'There is no precision {precision!r}: it is one of {PRECISIONS}. For int8, run xception-hub export.'
        )
    if precision == 'bf16' and lacks_bf16(example.device):
        raise OptimizeError(
            f"{example.device} has no instructions for bf16, and would only emulate it: choose precision='fp32'."
        )
    if photos and example.shape[1] != 3:
        raise OptimizeError(f'Photos have 3 channels, and the example has {example.shape[1]}: leave photos out.')


def _check_engine(name: str, device: str, precision: str) -> None:
    known = [name for name, row in ENGINES.items() if device in row.devices]
    if name not in known:
        raise OptimizeError(f'There is no engine {name!r} for the device {device!r}: it is one of {[AUTO, *known]}.')
    engine: Engine = ENGINES[name]
    if precision not in engine.precisions:
        able = [name for name in known if precision in ENGINES[name].precisions]
        raise OptimizeError(f'{name} does not support {precision} on {device}. These engines do: {able}.')
    if missing := engine.missing():
        raise OptimizeError(f"{name} needs {', '.join(missing)}: pip install '{engine.install}'.")
