"""Classifies one photo or a billion: threads decode images while the network computes, in constant memory.

`xception-hub predict` runs a `Predictor`; Ray Data, Spark and `datasets` can call it directly. The row of an image
depends on the model, the settings and the images in its batch, not on the number of processes or of threads that
decode. The number of threads that compute can change probabilities by about 1e-7.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache, cached_property
from http.client import HTTPException
from itertools import islice
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.folders import read_folder
from ..directory.config import OF_CLASSES, final_activation_of
from ..errors import DataError, ImageError, ModelError, SettingsError, in_one_line
from ..images import MAX_PIXELS
from ..models.build import Transforms, open_model
from ..models.class_names import names_of
from . import prediction_tables

EAGER = 'eager'
AHEAD = 2  # batches that are decoded while one is computed, which bounds the memory
COLUMNS = ('image', 'bytes', 'path')  # possible columns of images in a batch; the first that exists is used
MAX_BYTES, MAX_SECONDS = 2**28, 60  # of an image that is downloaded
SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Mapping)  # types of one image
BLANK = {'probability': np.nan}  # cell of a bad image by column; '' in other columns


class Loaded(NamedTuple):
    """The loaded model of a `Predictor`.

    Attributes:
        function: Images [B, 3, H, W] -> logits [B, C], or features [B, D].
        transforms: Preparation of the images.
        class_names: Name of each output; empty for features.
        multi_label: Whether an image can have any number of classes; then the sigmoid replaces the softmax.
        device: Device of the model.
        weights: Digest of the weights; '' if the model is a function without accessible weights.
    """

    function: Callable[[Tensor], Tensor]
    transforms: Transforms
    class_names: list[str]
    multi_label: bool
    device: torch.device
    weights: str


@dataclass
class Predictor:
    """Classifies images, or computes their features. The model is loaded at its first use.

    A call with a batch, a dict of arrays, returns the batch with columns of predictions, as `map_batches` of Ray Data
    and `map` of `datasets` need it. A Predictor can be pickled; each worker then loads a model given by name.

    Attributes:
        model: A directory that finetune or convert wrote, a name for timm.create_model, a timm model, or the result of
            `xception_hub.optimize`.
        top: Number of most probable classes in the column `top`.
        threshold: In multi-label models, the column `label` lists the classes above this probability.
        probabilities: Whether rows have the probabilities of all classes, too.
        embed: Whether rows have the features before the classifier instead of classes.
        multi_label: Whether an image can have any number of classes. None: the model's config.json decides.
        image_size: Height and width of the images in pixels. None: the model's own size.
        grey_maximum: Value of white in grey images of more than 8 bits, as in `xception_hub.open_image`. None: the
            model's config.json decides.
        batch_size: Number of images in a batch of the network.
        threads: Threads that decode images. None: one for each core of this process.
        device: Device of a model given by name. None: the GPU of this process, else the CPU.
        engine: Engine of a model given by name: 'eager', or one of `xception_hub.optimize`.
    """

    model: Any
    top: int = 5
    threshold: float = 0.5
    probabilities: bool = False
    embed: bool = False
    multi_label: bool | None = None
    image_size: int | None = None
    grey_maximum: int | None = None
    batch_size: int = 32
    threads: int | None = None
    device: str | None = None
    engine: str = EAGER

    def __post_init__(self) -> None:
        for name in ('top', 'batch_size', 'threads'):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SettingsError(f'{name} is {value}; it must be 1 or more.')

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the batch with a column for each of `columns`, without the contents of the images.

        In rows of bad images, `error` is not '', other strings are '' and numbers are NaN.

        Args:
            batch: Arrays or lists [N], one of which contains the images: `image`, else `bytes`, else `path`. An image
                may be anything that `predict` takes.

        Raises:
            DataError: There is no such column.
        """
        column = next((name for name in COLUMNS if name in batch), None)
        if column is None:
            raise DataError(f'A batch needs a column {", ".join(COLUMNS[:-1])} or path; it has {", ".join(batch)}.')
        kept = {name: values for name, values in batch.items() if name not in COLUMNS[:-1]}
        return {**kept, **self.columns_of(batch[column])}

    def make_predict_fn(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """Returns the function of images [N] to columns [N], for `pyspark.ml.functions.predict_batch_udf`."""
        return self.columns_of

    def predict(self, images: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Yields a row for each image, in order, with a cell for each of `columns`; missing cells are None.

        In the row of a bad image, `error` is the reason and all other cells are None.

        Args:
            images: Paths, URLs, contents of files, Pillow images, uint8 arrays [H, W, 3], or dicts with `bytes` or
                `path` as in `datasets`. The iterable is read only as far as needed. A single image gives one row. A
                folder, given alone, gives a row for each image in it or below it, with its path in `file`.

        Raises:
            ModelError: The model cannot be used.
            DataError: There is no image in the folder.
        """
        if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
            files = read_folder(images).all_images()
            if not files:
                raise DataError(f'There is no image in the folder {os.fspath(images)}.')
            for file, row in zip(files, self.predict(files)):
                yield dict(file=file, **row)
            return
        prepared = Prepared(self)
        is_single = isinstance(images, SINGLE) or (isinstance(images, np.ndarray) and images.ndim in (2, 3))
        remaining = iter([images] if is_single else images)
        pending: deque[list[Future[Tensor | str]]] = deque()
        pool = ThreadPoolExecutor(self.threads or cores())
        try:
            while batch := list(islice(remaining, self.batch_size)):
                pending.append([pool.submit(prepared, image) for image in batch])
                if len(pending) > AHEAD:
                    yield from self._rows(pending.popleft())
            while pending:
                yield from self._rows(pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    @property
    def columns(self) -> list[str]:
        """Names of the cells of a row, see `prediction_tables`."""
        of_classes = ['label', 'probability', 'top', *(['probabilities'] if self.probabilities else [])]
        return [*(['features'] if self.embed else of_classes), 'error']

    def columns_of(self, images: Iterable[Any]) -> dict[str, np.ndarray]:
        """Returns the rows of `predict` as columns [N], each of a fixed type; features [N, D]."""
        rows = list(self.predict(images))
        blank = {**BLANK, **({'features': self._no_features} if self.embed else {})}
        found = {}
        for name in self.columns:
            cells = [blank.get(name, '') if row.get(name) is None else row[name] for row in rows]
            kind = {'features': np.float32, 'probability': np.float64}.get(name, object)
            found[name] = np.array(cells, kind)
        return found

    def identity(self) -> dict[str, Any]:
        """Returns everything that the rows of given images depend on, in types that JSON can express."""
        loaded = self.loaded
        names = ('top', 'threshold', 'probabilities', 'embed', 'batch_size', 'engine')
        return dict(
            {name: getattr(self, name) for name in names},
            grey_maximum=loaded.transforms.grey_maximum,
            weights=loaded.weights,
            class_names=digest(name.encode('utf-8', 'surrogatepass') for name in loaded.class_names),
            multi_label=loaded.multi_label,
            preparation={
                name: list(value) if isinstance(value, tuple) else value
                for name, value in loaded.transforms.config.items()
            },
        )

    @cached_property
    def loaded(self) -> Loaded:
        """The loaded model.

        Raises:
            ModelError: There is no such model, or its outputs are not classes.
            SettingsError: There is no such device.
        """
        use_one_thread_in_forks()
        model, is_name = self.model, isinstance(self.model, (str, os.PathLike))
        if is_name:
            device = self._device()
            model, config = open_model(self.model)
            model.float()  # torch.set_default_dtype may ask for another precision
            activation = final_activation_of(config)
            several = config.get('problem_type') == 'multi_label_classification'
        else:
            activation = getattr(model, 'final_activation', 'unknown')
            several = activation == 'sigmoid'
            if self.embed and getattr(model, 'num_classes', None):
                raise ModelError(
                    f'The model ends in a classifier of {model.num_classes} classes. For its features, call '
                    f'model.reset_classifier(0), before xception_hub.optimize.'
                )
        if activation not in OF_CLASSES and not self.embed:
            raise ModelError(
                f'The outputs of {self.model} are values: they end in {activation!r}, and are no probabilities of '
                f'classes. xception-hub predict --embed writes the features before them.'
            )
        is_module = isinstance(model, nn.Module)
        weights = digest_of(model.eval()) if is_module else ''
        class_names = [] if self.embed else names_of(model)
        if is_name and self.embed:
            model.reset_classifier(0)
        if not is_name:
            parameter = next(model.parameters(), None) if is_module else None
            device = torch.device(self.device or 'cpu') if parameter is None else parameter.device
        transforms = Transforms(model.to(device) if is_name else model, self.image_size)
        transforms.grey_maximum = self.grey_maximum or transforms.grey_maximum
        function: Callable[[Tensor], Any] = model
        if is_name and self.engine != EAGER:
            from .optimize import optimize

            size = (self.batch_size, *transforms.config['input_size'])
            example = torch.zeros(size, device=device, dtype=torch.float32)
            function = optimize(model, example, self.engine)
        multi_label = several if self.multi_label is None else self.multi_label
        return Loaded(function, transforms, class_names, multi_label, device, weights)

    def _device(self) -> torch.device:
        try:
            return torch.zeros(1, device=self.device or default_device()).device
        except Exception as e:  # of torch and of drivers, which have no class in common
            raise SettingsError(f'The device {self.device!r} cannot be used ({e}). Choose cpu, or leave it out.') from e

    @torch.inference_mode()
    def outputs(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in uint8 -> logits [B, C] or features [B, D], in float32."""
        loaded = self.loaded
        images = loaded.transforms.normalized(pixels.to(loaded.device, non_blocking=True))
        return loaded.function(images.to(self._dtype)).float()

    @cached_property
    def _dtype(self) -> torch.dtype:  # of the images that the model takes
        function = self.loaded.function
        parameter = next(function.parameters(), None) if isinstance(function, nn.Module) else None
        dtype = torch.float32 if parameter is None else parameter.dtype
        return dtype if dtype in (torch.float64, torch.float16, torch.bfloat16) else torch.float32  # else quantized

    @cached_property
    def _no_features(self) -> np.ndarray:  # [D]
        size = self.loaded.transforms.config['input_size']
        return np.full(self.outputs(torch.zeros(1, *size, dtype=torch.uint8)).shape[1], np.nan, np.float32)

    def _rows(self, batch: list['Future[Tensor | str]']) -> Iterator[dict[str, Any]]:  # pixels [3, H, W] or errors
        found = [future.result() for future in batch]
        pixels = [image for image in found if isinstance(image, Tensor)]
        cells = iter(self.cells(self.outputs(torch.stack(pixels))) if pixels else [])
        for image in found:
            row = dict.fromkeys(self.columns)
            yield {**row, 'error': image} if isinstance(image, str) else {**row, **next(cells)}

    def cells(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Converts logits [B, C] or features [B, D] into cells."""
        if self.embed:
            return [dict(features=vector) for vector in outputs.cpu().tolist()]
        names, multi_label = self.loaded.class_names, self.loaded.multi_label
        outputs = outputs.double().cpu()
        probabilities = outputs.sigmoid() if multi_label else outputs.softmax(1)
        values, places = (tensor.tolist() for tensor in probabilities.topk(min(self.top, outputs.shape[1])))
        rows = []
        for number, likeliest in enumerate(zip(places, values)):
            over = (probabilities[number] > self.threshold).nonzero().flatten().tolist() if multi_label else None
            found = None if over is None else [names[place] for place in over]
            row = prediction_tables.row([(names[place], value) for place, value in zip(*likeliest)], found)
            if self.probabilities:
                row['probabilities'] = prediction_tables.as_json(probabilities[number].tolist())
            rows.append(row)
        return rows


class Prepared:
    """Converts an image to uint8 pixels [3, H, W], or returns the reason why it is bad."""

    def __init__(self, predictor: Predictor) -> None:
        self.transforms = predictor.loaded.transforms
        self.transform = self.transforms.pixels()

    def __call__(self, image: Any) -> Tensor | str:  # [3, H, W] or the reason
        try:
            found = _open(image, self.transforms)
            shorter, longer = sorted(found.size)
            if longer / shorter * self.transforms.min_side**2 > MAX_PIXELS:  # as resizing would make it
                return f'{found.width}x{found.height} pixels, which are too narrow'
            return self.transform(found)
        except ImageError as e:
            return str(e)


def _open(image: Any, transforms: Transforms) -> Image.Image:
    if isinstance(image, Mapping):
        image = image.get('path') if image.get('bytes') is None else image['bytes']
    if isinstance(image, str) and '://' in image:
        image = _downloaded(image)
    if image is None:
        raise ImageError('no image in this row')
    if isinstance(image, (bytearray, memoryview)):
        image = bytes(image)
    if not isinstance(image, (bytes, str, os.PathLike, Image.Image, np.ndarray)):
        raise ImageError(f'{type(image).__name__} instead of a path, bytes, an image or an array')
    if isinstance(image, (str, os.PathLike)) and os.path.isdir(image):
        raise ImageError('a folder, which predict takes alone: predict(folder)')
    return transforms.open(image)


def _downloaded(url: str) -> bytes:
    if not url.lower().startswith(('http://', 'https://')):  # such as hf:// and s3://
        try:
            from ..data.labelled import content  # with packages that other images do without
        except ImportError as e:
            raise ImageError(f"this URL needs {e.name}: pip install 'xception-hub[finetune]'") from e
        return content(dict(path=url))
    found, end = bytearray(), time.monotonic() + MAX_SECONDS
    try:
        with urlopen(Request(url, headers={'User-Agent': 'xception-hub'}), timeout=MAX_SECONDS) as answer:
            while part := answer.read1(2**16):
                found += part
                if len(found) > MAX_BYTES:
                    raise ImageError(f'the URL has more than {MAX_BYTES} bytes')
                if time.monotonic() > end:
                    raise ImageError(f'the URL was not read within {MAX_SECONDS} seconds')
    except ImageError:
        raise
    except (OSError, ValueError, HTTPException) as e:
        raise ImageError(f'the URL cannot be read: {in_one_line(e)}') from e
    return bytes(found)


@cache
def use_one_thread_in_forks() -> None:
    """Limits torch to one thread in processes that will be forked from this one.

    torch's other threads do not exist in a forked process, which would wait for them forever.
    """
    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def cores() -> int:
    """Number of cores for this process: its share, if a launcher has started several processes on this machine."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(here // int(os.environ.get('LOCAL_WORLD_SIZE', '1')), 1)


def default_device() -> str:
    """The GPU of this process, by its rank on this machine, else the CPU."""
    if not torch.cuda.is_available():
        return 'cpu'
    return f'cuda:{int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()}'


def digest_of(model: nn.Module) -> str:
    """Digest of a model's tensors with their names."""
    return digest(
        part
        for name, tensor in model.state_dict().items()
        for part in (name.encode(), tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    )


def digest(parts: Iterable[Any]) -> str:
    """Digest of byte strings, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f'{len(part)} '.encode())
        found.update(part)
    return found.hexdigest()[:16]
