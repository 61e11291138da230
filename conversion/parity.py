"""Both networks on the same images, compared after every module, in the precision in which nothing can hide."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from xception_hub import Xception
from xception_hub.fingerprints import compare

from .port import Port
from .reference import TAPS, KerasReference

__all__ = ['Parity', 'Proof', 'compare_with_keras', 'prove_parity']

# Relative L2 difference that float arithmetic in another order leaves; a wrong eps, padding or tensor is 1e-2 and more.
TOLERANCES = {'float64': 1e-12, 'float32': 5e-6}
# In float32 the modules' roundings add up on the way and average out in the pooling, so that is where to look.
COMPARED = {'float64': TAPS, 'float32': ['head.global_pool']}

IMAGE_COUNT = 2
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
SEED = 20161007  # of the images, if there are no photos: the day of the paper's first version


@dataclass(frozen=True)
class Proof:
    """One comparison of the two networks.

    Attributes:
        dtype: 'float64' or 'float32', on both sides.
        size: Height and width of the images in pixels.
        images: 'photos' or 'noise'.
        differences: Tap -> L2 norm of the difference, relative to that of Keras' output.
        tolerance: That each difference has to meet.
    """

    dtype: str
    size: tuple[int, int]
    images: str
    differences: dict[str, float]
    tolerance: float

    @property
    def worst(self) -> float:
        return max(self.differences.values())

    @property
    def first_wrong(self) -> str | None:
        """The first tap, in the order of computation, that is out of tolerance."""
        return next((tap for tap, value in self.differences.items() if not value <= self.tolerance), None)


@dataclass
class Parity:
    """All that was proven about a conversion.

    Attributes:
        reference: Version and backend of Keras.
        proofs: One for each precision and size.
        fingerprints: How the backbone compares with Keras' own, which a fine-tuned one need not equal.
    """

    reference: str
    proofs: list[Proof]
    fingerprints: dict[str, int]

    @property
    def passed(self) -> bool:
        return bool(self.proofs) and all(proof.first_wrong is None for proof in self.proofs)

    def as_dict(self) -> dict[str, Any]:
        """For parity.json."""
        proofs = [{**asdict(p), 'worst': p.worst, 'passed': p.first_wrong is None} for p in self.proofs]
        return dict(passed=self.passed, reference=self.reference, proofs=proofs, fingerprints=self.fingerprints)

    def tap_table(self) -> str:
        """A row for each tap, a column for each size, in float64; an asterisk where it is out of tolerance."""
        proofs = [proof for proof in self.proofs if proof.dtype == 'float64']
        lines = [f'{"after":18}' + ''.join(f'{f"{p.size[0]}x{p.size[1]}":>11}' for p in proofs)]
        for tap in proofs[0].differences:
            values = [(proof.differences[tap], proof.tolerance) for proof in proofs]
            lines.append(f'{tap:18}' + ''.join(f'{v:10.1e}{" " if v <= most else "*"}' for v, most in values))
        return '\n'.join(lines)

    def table(self) -> str:
        """A row for each proof, with its worst tap."""
        lines = [f'{"precision":10}{"size":>10}  {"worst difference":18}{"tolerance":>10}  result']
        for p in self.proofs:
            result = 'equal' if p.first_wrong is None else f'DIFFERENT from {p.first_wrong} on'
            size = f'{p.size[0]}x{p.size[1]}'
            lines.append(f'{p.dtype:10}{size:>10}  {p.worst:<18.1e}{p.tolerance:>10.0e}  {result}')
        return '\n'.join(lines)


def prove_parity(
        ported: Port, model: Xception, sizes: Sequence[tuple[int, int]], photos: Sequence[Path] = (),
) -> Parity:
    """Compares a model with the Keras file that it came from.

    Args:
        ported: The file.
        model: That is to be the same; it is left in float32.
        sizes: Heights and widths to compare at, in pixels.
        photos: To compare on; uniform noise without any.

    Raises:
        ImportError: Keras is not installed.
    """
    proofs: list[Proof] = []
    for dtype in TOLERANCES:
        reference = KerasReference(ported, dtype)
        proofs += [compare_with_keras(reference, model, size, photos) for size in sizes]
    found = compare(ported.tensors)
    counts = {kind: len(getattr(found, kind)) for kind in ('identical', 'compensated', 'different', 'missing')}
    return Parity(reference.version, proofs, counts)


def compare_with_keras(
        reference: KerasReference, model: Xception, size: tuple[int, int], photos: Sequence[Path] = (),
) -> Proof:
    """Runs both networks on the same images and compares them tap by tap."""
    # in float32 on both sides, also where the network computes in float64: that is what images come in
    images = (photo_batch(photos, size) if photos else _noise(size, model.in_chans)).astype(np.float32)
    with one_thread() if reference.dtype == 'float64' else nullcontext():
        expected, found = reference(images), torch_taps(model, images, reference.dtype)
    return compare_taps(expected, found, reference.dtype, size, 'photos' if photos else 'noise')


@contextmanager
def one_thread() -> Iterator[None]:
    """Depthwise convolutions in float64 run channel by channel, and threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compare_taps(
        expected: dict[str, np.ndarray], found: dict[str, np.ndarray], dtype: str, size: tuple[int, int], images: str,
) -> Proof:
    """Compares what both networks computed from the same images."""
    differences = {
        tap: float(np.linalg.norm(found[tap] - expected[tap]) / np.linalg.norm(expected[tap]))
        for tap in COMPARED[dtype] if tap in expected}
    return Proof(dtype, size, images, differences, TOLERANCES[dtype])


@torch.no_grad()
def torch_taps(model: Xception, images: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Runs the network on images [B, H, W, C].

    Returns:
        Tap -> [B, h, w, c], from 'head.global_pool' on [B, c].
    """
    taps: dict[str, np.ndarray] = {}

    def keep(tap: str):
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            axes = (0, 2, 3, 1) if output.dim() == 4 else (0, 1)
            taps[tap] = output.permute(axes).numpy().copy()
        return hook

    handles = [model.get_submodule(tap).register_forward_hook(keep(tap)) for tap in TAPS]
    try:
        model.to(getattr(torch, dtype)).eval()(torch.from_numpy(images.transpose(0, 3, 1, 2)).to(getattr(torch, dtype)))
    finally:
        for handle in handles:
            handle.remove()
        model.float()
    return taps


def _noise(size: tuple[int, int], channels: int) -> np.ndarray:
    return np.random.default_rng(SEED).uniform(-1, 1, (IMAGE_COUNT, *size, channels))


def find_photos(folder: Path) -> list[Path]:
    """The image files of a folder, by name.

    Raises:
        OSError: There is no such folder, or no image in it.
    """
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not photos:
        raise OSError(f'{folder} holds no file that ends in one of {IMAGE_SUFFIXES}.')
    return photos


def photo_batch(paths: Sequence[Path], size: tuple[int, int], most: int = IMAGE_COUNT) -> np.ndarray:
    """The first photos as images [B, H, W, 3] in [-1, 1]."""
    height, width = size
    nearest = Image.Resampling.NEAREST
    images = [Image.open(path).convert('RGB').resize((width, height), nearest) for path in paths[:most]]
    return np.stack([np.asarray(image) / 127.5 - 1 for image in images])
