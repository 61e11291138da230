"""The same function, faster: by the engine that is the fastest on this machine, checked against the original."""

import statistics
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptimizeError, in_one_line
from ..timing import lacks_bf16, rounds, timed
from .check import Function, Reference, as_list
from .engine_choices import Choices, key_of
from .engines import ENGINES, Engine
from .folding import folded
from .photo_batches import Photo, photos_like

AUTO = 'auto'
ORIGINAL = 'original'
PRECISIONS = ('fp32', 'bf16')
ROUNDS, SECONDS = 10, 4.0  # engines take turns until one of both is reached
CALLED_WITH = 4  # images in each turn of an engine, at least
BUSY = 1.5  # median of an engine's times, relative to the least, from which on they say little
MEASURED_BUSY = 'The machine was busy with something else: what was measured is not certain, and not remembered.'
COPIED = ('pretrained_cfg', 'default_cfg', 'num_classes', 'num_features', 'in_chans', 'feature_info')


class OptimizedModel:
    """A network's function, run by an engine. It takes and returns what the network does, without gradients.

    Attributes:
        engine: Name of the engine.
        precision: What it computes in. Images and outputs are float32 in any case.
        difference: Largest L2 norm of the difference of an image's outputs from the original's, relative to theirs.
        checked_on: The images of which this is the difference, in words.
        any_size: Whether it takes images of other sizes than the example's.
        seconds: Least seconds of each contender for the example; the model as it came is called 'original'.
        notes: What was left out or could not be had, and why.
        pretrained_cfg, num_classes and others: Those of the original, where it has them.
    """

    pretrained_cfg: dict[str, Any]
    num_classes: int

    def __init__(self, function: Function, engine: str, reference: Reference) -> None:
        self._function = function
        self._lock = threading.Lock()  # an engine has memory for one call
        self._output_shapes = reference.output_shapes
        self._example, self._device = list(reference.example.shape), reference.example.device
        self.engine, self.precision = engine, reference.precision
        self.comparison, self.any_size = reference.compare(function)
        self.difference, self.checked_on = self.comparison.difference, reference.words
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.__dict__.update({name: vars(reference.model)[name] for name in COPIED if name in vars(reference.model)})

    @property
    def gain(self) -> float:
        """How many times as fast as the original it is, for images of the example's shape."""
        return self.seconds[ORIGINAL] / self.seconds[self.engine]

    def __call__(self, images: Tensor) -> Any:
        """Computes what the original does.

        Args:
            images: [B, C, H, W] in float32, on the example's device.

        Raises:
            OptimizeError: They have another type or device, or a size that the engine does not take.
            Exception: What the original raises for images of this shape.
        """
        if images.dtype != torch.float32 or images.device != self._device:
            raise OptimizeError(
                f'The images are {images.dtype} on {images.device}, but this model takes torch.float32 on '
                f"{self._device}: pass images.to('{self._device}', torch.float32)."
            )
        kind, shapes = self._output_shapes(tuple(images.shape))
        if not self.any_size and list(images.shape[1:]) != self._example[1:]:
            raise OptimizeError(
                f'{self.engine} was made for images {self._example}, and cannot take {list(images.shape)}: optimize '
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
                f'{self.engine} returns {found} for images {list(images.shape)}, and the original {shapes}: optimize '
                f"with engine='pytorch'."
            )
        return outputs[0] if kind is Tensor else kind(outputs)

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

    Batch normalization becomes a part of the convolutions, and images are channels_last. Of the engines that are
    installed, the fastest for the example is chosen, which takes 15 to 20 seconds on two cores, and remembered. On a
    CPU, Inductor is not among them, because it builds for minutes (245 s on two cores): ask for it by name.

    Args:
        model: A timm model in evaluation mode, in float32. It stays as it is.
        example: Images [B, C, H, W] in float32, such as will come, on the model's device. Other batches and sizes work
            afterwards.
        engine: 'auto', or the name of an engine: 'pytorch', 'inductor'; on a CPU also 'onnxruntime', 'openvino'; on a
            GPU also 'cudagraphs', 'tensorrt'.
        precision: 'fp32', or 'bf16' where the device has it.
        photos: Paths or images, of which four are used to compare with the original. None is a photo that Matplotlib
            brings along; without Matplotlib, and for images that are not RGB, it is the example.
        choices: JSON file that remembers what was chosen. None is one in the cache of the Hugging Face libraries.

    Raises:
        OptimizeError: An argument is not possible here, or no engine computes what the model does.
    """
    _check(model, example, precision, photos)
    device = example.device.type
    if engine != AUTO:
        _check_engine(engine, device, precision)
    compared_on = photos_like(example, model, photos)
    reference = Reference(model, example, precision, compared_on.images, compared_on.words)
    network, notes = folded(model)
    if engine != AUTO:
        result = _built(engine, network, reference)
        result.seconds, busy = _measured(reference, [result])
        result.notes = [*notes, *[MEASURED_BUSY] * busy]
        return result
    known, key = Choices(choices), key_of(model, example, precision)
    if choice := known.get(key):
        for result in _all_built([choice['engine']], network, reference)[0]:
            result.seconds, result.notes = choice['seconds'], notes
            return result
    tried = [name for name, row in ENGINES.items() if device in row.auto and precision in row.precisions]
    results, left_out = _all_built(tried, network, reference)
    if not results:
        raise OptimizeError(' '.join(['No engine computes what the model does.', *left_out]))
    seconds, busy = _measured(reference, results)
    best = min(results, key=lambda result: seconds[result.engine])
    if not busy:
        known.put(key, best.engine, seconds)
    best.seconds, best.notes = seconds, [*notes, *left_out, *known.notes, *[MEASURED_BUSY] * busy]
    return best


def _all_built(
    names: Sequence[str], network: nn.Module, reference: Reference
) -> tuple[list[OptimizedModel], list[str]]:
    """Those that compute what the original does, and why others are left out."""
    results, notes = [], []
    for name in names:
        try:
            _check_engine(name, reference.example.device.type, reference.precision)
            results.append(_built(name, network, reference))
        except OptimizeError as e:
            notes.append(str(e))
    return results, notes


def _built(name: str, network: nn.Module, reference: Reference) -> OptimizedModel:
    """The model in an engine, after a comparison with the original.

    Raises:
        OptimizeError: The engine cannot run it, or computes something else.
    """
    try:
        with torch.no_grad():
            function = ENGINES[name].build(network, reference.example, reference.precision)
            result = OptimizedModel(function, name, reference)
    except Exception as e:  # of all those packages
        raise OptimizeError(f'{name} cannot run this model: {in_one_line(e)}') from e
    if not reference.is_same(result.comparison):
        raise OptimizeError(
            f'{name} computes something else: it differs by {result.difference:.1e} on {result.checked_on}, of '
            f'{reference.tolerance:.0e} at most in {reference.precision}. Choose another engine.'
        )
    return result


def _measured(reference: Reference, results: Sequence[OptimizedModel]) -> tuple[dict[str, float], bool]:
    """Seconds of the original and of each result, for the example; and whether the machine was busy with other things.

    The least of several times is the one that is disturbed least.
    """
    contenders: dict[str, Callable[[Tensor], Any]] = {
        ORIGINAL: reference.model,
        **{result.engine: result for result in results},
    }
    calls = max(1, CALLED_WITH // len(reference.example))
    with torch.no_grad():
        steps = {
            name: timed(partial(contender, reference.example), reference.example.device, calls)
            for name, contender in contenders.items()
        }
        taken = rounds(steps, ROUNDS, SECONDS)
    busy = any(statistics.median(seconds) > BUSY * min(seconds) for seconds in taken.values())
    return {name: min(seconds) for name, seconds in taken.items()}, busy


def _check(model: nn.Module, example: Tensor, precision: str, photos: Sequence[Photo] | None) -> None:
    if model.training:
        raise OptimizeError('The model is in training mode, which is not what it computes later: call model.eval().')
    if example.dim() != 4 or not len(example):
        raise OptimizeError(f'The example is {list(example.shape)}, not images [batch, channels, height, width].')
    parameter = next(model.parameters(), example)
    if not example.dtype == parameter.dtype == torch.float32:
        raise OptimizeError(
            f'The example is {example.dtype} and the model {parameter.dtype}, but both must be torch.float32: call '
            f'.float(). What is computed in is said by precision.'
        )
    if example.device != parameter.device:
        raise OptimizeError(
            f'The example is on {example.device}, not on {parameter.device} as the model is: pass '
            f"example.to('{parameter.device}')."
        )
    if precision not in PRECISIONS:
        raise OptimizeError(
            f'There is no precision {precision!r}: it is one of {PRECISIONS}. For int8, run xception-hub export.'
        )
    if precision == 'bf16' and lacks_bf16(example.device):
        raise OptimizeError(
            f"{example.device} has no instructions for bf16, and would only emulate it: take precision='fp32'."
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
        raise OptimizeError(f'{name} does not compute in {precision} here, but {able} do.')
    if missing := engine.missing():
        raise OptimizeError(f"{name} needs {', '.join(missing)}: pip install '{engine.install}'.")
