"""Both networks on the same images, compared after every module, in the precision in which nothing can hide."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import Xception
from ..errors import ParityError, listed
from ..topology import TAPS
from ..weights.fingerprints import compare
from .consistency import Finding, check_consistency, hooked
from .port import Port
from .preprocessing import Photo, photo_batch
from .reference import KerasReference, release_memory

# Relative L2 difference that float arithmetic in another order leaves; a wrong eps, padding or tensor is 1e-2 and more.
TOLERANCES = {'float64': 1e-12, 'float32': 5e-6}
# In float32 the modules' roundings add up on the way and average out in the pooling, so that is where to look.
COMPARED = {'float64': TAPS, 'float32': ['head.global_pool']}

OWN_ARRAYS = (
    'It shows what the network computes with these arrays. It does not show that the file holds them at these places, '
    'nor what the file says of settings and wires: what is known of that stands below.'
)

IMAGE_COUNT = 2
SEED = 20161007  # of the images, if there are no photos: the day of the paper's first version


@dataclass(frozen=True)
class Comparison:
    """One comparison of the two networks.

    Attributes:
        dtype: 'float64' or 'float32', on both sides.
        size: Height and width of the images in pixels.
        images: 'photos' or 'noise'.
        differences: Tap -> L2 norm of the difference, relative to that of Keras' output.
        tolerance: Largest difference that passes.
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
        reference: Version and backend of Keras; None if it is not installed, and nothing was compared with it.
        reading: Who read the file for Keras.
        proofs: One for each precision and size that was compared with Keras.
        checks: The other proofs.
        by_keras: Whether Keras itself has read the file's arrays. Else the comparison is no proof about the file alone.
    """

    reference: str | None
    reading: str | None
    proofs: list[Comparison]
    checks: list[Finding]
    by_keras: bool = True

    def result(self, proof: Comparison) -> str:
        """What a comparison shows, in a few words."""
        if proof.first_wrong is not None:
            return f'DIFFERENT from {proof.first_wrong} on'
        return 'equal' if self.by_keras else "as Keras' own Xception with these arrays"

    @property
    def passed(self) -> bool:
        """Whether each proof that decides says so, and there is one."""
        verdicts = [proof.first_wrong is None for proof in self.proofs]
        verdicts += [check.passed for check in self.checks if check.decisive]
        return bool(verdicts) and all(verdicts)

    def as_dict(self) -> dict[str, Any]:
        """For parity.json."""
        proofs: list[dict[str, Any]] = []
        for p in self.proofs:
            verdict = dict(
                worst=p.worst, first_wrong=p.first_wrong, passed=p.first_wrong is None, result=self.result(p)
            )
            proofs.append(dict(proof='Keras', **asdict(p), **verdict))
        for check in self.checks:
            found = asdict(check)
            proofs.append({**found, **found.pop('figures')})
        of_all = dict(passed=self.passed, reference=self.reference, reading=self.reading, by_keras=self.by_keras)
        return dict(of_all, proofs=proofs)

    def report(self) -> str:
        """All proofs, for people."""
        lines = []
        if self.proofs:
            lines += [self.table(), '', f'Reference: {self.reference}, given {self.reading}.']
            lines += [] if self.by_keras else [OWN_ARRAYS]
        else:
            lines += ['Keras is not installed, so the computation was NOT compared. What was shown without it:']
        for check in self.checks:
            verdict = 'passed' if check.passed else 'FAILED' if check.decisive else 'NOTE'
            lines.append(f'{check.proof}: {verdict}, {check.summary}')
        return '\n'.join(lines)

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
            size = f'{p.size[0]}x{p.size[1]}'
            lines.append(f'{p.dtype:10}{size:>10}  {p.worst:<18.1e}{p.tolerance:>10.0e}  {self.result(p)}')
        return '\n'.join(lines)


def keras_is_installed() -> bool:
    """Whether networks can be compared with Keras; without it there are the other proofs."""
    return importlib.util.find_spec('keras') is not None


def prove_parity(
    ported: Port,
    model: Xception,
    sizes: Sequence[tuple[int, int]],
    photos: Sequence[Photo] = (),
    consistency_images: np.ndarray | None = None,
) -> Parity:
    """Compares a model with the Keras file that it came from, if Keras is installed, and makes the other proofs.

    Args:
        ported: The file.
        model: The network that is compared; it is left in float32.
        sizes: Heights and widths to compare at, in pixels. A head that takes one size is compared at that alone.
        photos: Photos to compare on; without any, uniform noise.
        consistency_images: [B, H, W, C], prepared as in training, for the proofs that need no Keras.

    Raises:
        ParityError: Keras is not installed, and there are no images for the proofs without it.
    """
    proofs: list[Comparison] = []
    version = reading = None
    by_keras = False
    checks = [same_tensors(ported, model), _settings(ported)]
    if ported.structure.head.one_size and ported.image_size:
        sizes = [ported.image_size]
    if keras_is_installed():
        try:
            for dtype in TOLERANCES:
                reference = KerasReference(ported, dtype)
                version, reading, by_keras = reference.version, reference.reading, reference.by_keras
                proofs += [compare_with_keras(reference, model, size, photos) for size in sizes]
                del reference
                release_memory()
        except ParityError as e:
            checks.append(Finding('comparison with Keras', False, True, f'not shown: {e}'))
    elif consistency_images is None:
        raise ParityError(
            f'{ported.source}: Keras is not installed, and there is no photo for the proofs without it. Install '
            f"Keras (pip install 'xception-hub[keras]'), or pass --images FOLDER."
        )
    images = _noise(sizes[0], model.in_chans) if consistency_images is None else consistency_images
    statistics, residuals = check_consistency(model, images)
    if consistency_images is not None:  # noise tells the normalizations apart, but not how far off they may be
        checks.append(replace(statistics, decisive=not proofs))
    checks.append(replace(residuals, decisive=not by_keras))
    if ported.misplaced is not None:
        checks.append(_positions(ported.misplaced, not by_keras))
    return Parity(version, reading, proofs, [*checks, _fingerprints(ported)], by_keras or not proofs)


def _settings(ported: Port) -> Finding:
    """What the file's config says of the network inside; `port` has refused what is not that of figure 5."""
    structure = ported.structure
    if structure.roles:
        summary = f"all settings and wires of {len(structure.roles)} layers are those of Keras' Xception"
    elif structure.preset is not None:
        summary = "the preset's backbone has the widths and poolings of Keras' Xception"
    elif ported.is_release:
        summary = 'Keras publishes these weights for its own Xception'
    else:
        summary = (
            'not known: the file holds weights alone, so that all settings (strides, padding, dilation, activations, '
            "epsilon, ...) and wires are assumed to be those of Keras' Xception"
        )
    if structure.arguments:
        summary += f', but for {", ".join(f"{name}={value!r}" for name, value in structure.arguments.items())}'
    known = not summary.startswith('not known')
    return Finding('settings and wires', known, False, summary, dict(arguments=structure.arguments))


def _positions(misplaced: list[tuple[str, str]], decisive: bool) -> Finding:
    """Whether the order of the arrays says the same as their names; decisive unless Keras has read the file by it."""
    first = f', first {misplaced[0][0]}, where the order has {misplaced[0][1]}' if misplaced else ''
    summary = f'by their order, as Keras loads them, {len(misplaced)} arrays would belong elsewhere{first}'
    return Finding('second reading', not misplaced, decisive, summary, dict(misplaced=misplaced))


def same_tensors(ported: Port, model: nn.Module) -> Finding:
    """Whether the network holds the file's arrays, bit by bit."""
    state = model.state_dict()
    unequal = [name for name, tensor in ported.tensors.items() if name not in state or not tensor.equal(state[name])]
    more = [name for name in state if name not in ported.tensors and not name.endswith('num_batches_tracked')]
    equal = len(ported.tensors) - len(unequal)
    summary = f'{equal} of {len(ported.tensors)} tensors are bit-identical to the arrays of the file'
    if unequal or more:
        summary += f'; not so {listed(unequal + more)}'
    return Finding('tensors', not unequal and not more, True, summary, dict(unequal=unequal, more=more))


def _fingerprints(ported: Port) -> Finding:
    """How the backbone compares with Keras' own, which a fine-tuned one need not equal."""
    found = compare(ported.tensors)
    counts = {kind: len(getattr(found, kind)) for kind in ('identical', 'compensated', 'different', 'missing')}
    equal, total = counts['identical'], sum(counts.values())
    summary = f'{equal} of {total} tensors of the backbone are bit-identical to those that Keras publishes'
    return Finding('fingerprints', equal == total, False, summary, counts)


def compare_with_keras(
    reference: KerasReference, model: Xception, size: tuple[int, int], photos: Sequence[Photo] = ()
) -> Comparison:
    """Runs both networks on the same images and compares them tap by tap."""
    scale, offset = (np.asarray(value, np.float64) for value in reference.rescaling)
    on_photos = bool(photos) and model.in_chans == 3
    images = photo_batch(photos[:IMAGE_COUNT], size) if on_photos else _noise(size, model.in_chans)
    # in float32 on both sides, also where the network computes in float64: that is what images come in
    taken = ((images - offset) / scale).astype(np.float32)
    with one_thread() if reference.dtype == 'float64' else nullcontext():
        expected = reference(taken)
        found = torch_taps(model, taken * scale + offset, reference.dtype)
    return compare_taps(expected, found, reference.dtype, size, 'photos' if on_photos else 'noise')


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
    expected: dict[str, np.ndarray], found: dict[str, np.ndarray], dtype: str, size: tuple[int, int], images: str
) -> Comparison:
    """Compares what both networks computed from the same images: tap -> [B, h, w, c] or [B, c], alike in both."""
    differences = {
        tap: float(np.linalg.norm(found[tap] - expected[tap]) / (np.linalg.norm(expected[tap]) or 1))
        for tap in COMPARED[dtype]
        if tap in expected
    }
    return Comparison(dtype, size, images, differences, TOLERANCES[dtype])


@torch.no_grad()
def torch_taps(model: Xception, images: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Runs the network on images [B, H, W, C].

    Returns:
        Tap -> [B, h, w, c], from 'head.global_pool' on [B, c].
    """
    taps: dict[str, np.ndarray] = {}

    def keep(tap: str):
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            if tap == 'head.global_pool' and output.dim() == 4:  # of a head that takes the maps as they are
                output = output.mean((2, 3))
            axes = (0, 2, 3, 1) if output.dim() == 4 else (0, 1)
            taps[tap] = output.permute(axes).numpy().copy()

        return hook

    precision = getattr(torch, dtype)
    try:
        with hooked(model.get_submodule(tap).register_forward_hook(keep(tap)) for tap in TAPS):
            model.to(precision).eval()(torch.from_numpy(images.transpose(0, 3, 1, 2)).to(precision))
    finally:
        model.float()
    return taps


def _noise(size: tuple[int, int], channels: int) -> np.ndarray:
    return np.random.default_rng(SEED).uniform(-1, 1, (IMAGE_COUNT, *size, channels))
