"""Verifies that tensors are those that Keras publishes, by a fingerprint of each of the backbone's 234."""

import functools
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from .checkpoint_files import StateDict

# A network that runs with eps 1e-5 computes what Keras does with 1e-3 if its variances are larger by the difference.
EPS_COMPENSATION = 1e-3 - 1e-5

# Roundings to float32 that a variance may have gone through. Each leaves a relative error of at most 2**-24.
ROUNDINGS = 2


@dataclass(frozen=True)
class Verification:
    """How a checkpoint's backbone compares with the one that Keras publishes; each tensor's name is in one list.

    Attributes:
        identical: Tensors that are equal bit by bit.
        compensated: Variances that are all larger by 9.9e-4, as a network with BatchNorm eps 1e-5 needs them.
        different: Tensors that are neither identical nor compensated.
        missing: Tensors that the checkpoint does not have.
    """

    identical: list[str]
    compensated: list[str]
    different: list[str]
    missing: list[str]

    @property
    def is_genuine(self) -> bool:
        """Whether every tensor is Keras' own, at the latest after `restore_variances`."""
        return not self.different and not self.missing

    def __str__(self) -> str:
        others = {
            'equal up to the eps compensation': self.compensated,
            'different': self.different,
            'missing': self.missing,
        }
        counts = [f'{len(names)} {what}' for what, names in others.items() if names]
        return ', '.join([f'{len(self.identical)} of {len(genuine()["sha256"])} tensors bit-identical', *counts])


@functools.cache
def genuine() -> dict[str, Any]:
    """The fingerprints of the tensors in Keras' release, under this network's names and in torch's layout.

    Returns:
        `sha256`: digest of each tensor's float32 values, little-endian, row by row. `log_sums`: for each moving
        variance, which may arrive rounded, the sum of the logarithms, plain and weighted by channel number.
    """
    return json.loads(resources.files(__package__).joinpath('fingerprints.json').read_text(encoding='utf-8'))


def compare(tensors: StateDict) -> Verification:
    """Compares the backbone's tensors, under this network's names, with those that Keras publishes."""
    expected, found = genuine(), _digests(tensors)
    result = Verification([], [], [], [])
    for name, digest in expected['sha256'].items():
        if name not in tensors:
            result.missing.append(name)
        elif found[name] == digest:
            result.identical.append(name)
        elif name in expected['log_sums'] and _is_compensated(tensors[name], expected['log_sums'][name]):
            result.compensated.append(name)
        else:
            result.different.append(name)
    return result


def restore_variances(tensors: StateDict, verification: Verification) -> StateDict:
    """Returns the tensors without the eps compensation of their variances [channels]."""
    restored = {name: _without_compensation(tensors[name]).float() for name in verification.compensated}
    return {**tensors, **restored}


def _digests(tensors: StateDict) -> dict[str, str]:
    names = sorted(name for name in tensors if not name.startswith('head.'))
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(_sha256, (tensors[name] for name in names))))


def _sha256(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous()
    if values.dtype != torch.float32:
        return f'{values.dtype}'  # never equal to a digest, even if a cast would be
    return hashlib.sha256(values.numpy().astype('<f4', copy=False).data).hexdigest()


def _log_sums(variance: Tensor) -> list[float]:
    logs = variance.double().log()
    return [logs.sum().item(), (logs * _channel_numbers(logs)).sum().item()]


def _channel_numbers(values: Tensor) -> Tensor:
    return torch.arange(1, len(values) + 1, dtype=values.dtype)


def _without_compensation(variance: Tensor) -> Tensor:
    return (variance.double() - EPS_COMPENSATION).clamp(min=0)


def _is_compensated(variance: Tensor, expected: list[float]) -> bool:
    restored = _without_compensation(variance)
    if not (restored > 0).all():
        return False
    errors = ROUNDINGS * 2**-24 * variance.double() / restored
    tolerances = errors.sum().item(), (errors * _channel_numbers(errors)).sum().item()
    return all(abs(a - b) <= most for a, b, most in zip(_log_sums(restored), expected, tolerances))
