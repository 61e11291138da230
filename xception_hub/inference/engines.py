"""The engines that run a network for inference, as a table."""

import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .check import Checked, Reference
from .exporters import FORMATS, InDtype, exported, not_installed

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}


class Engine(NamedTuple):
    """A way to run a network.

    Attributes:
        build: Makes a function of images [B, C, H, W] in float32, and compares it with the model. The function returns
            a tensor, or a list or tuple of tensors, in float32.
        packages: Packages that it imports in addition to torch.
        install: Argument of `pip install` for these packages.
        devices: Types of the devices that it runs on.
        auto: Types of the devices on which it starts within seconds, so that engine='auto' tries it.
        precisions: Precisions that it supports.
    """

    build: Callable[[Reference], Checked]
    packages: tuple[str, ...] = ()
    install: str = 'torch'
    devices: tuple[str, ...] = ('cuda',)
    auto: tuple[str, ...] = ('cuda',)
    precisions: tuple[str, ...] = ('fp32', 'bf16')

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return not_installed(self.packages)

    def version(self) -> str:
        """Versions of its packages; empty if it needs none but torch."""
        return ' '.join(map(_version, self.packages))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # not installed, or by a distribution of another name
        return 'unknown' if importlib.util.find_spec(package) else 'missing'


def _pytorch(reference: Reference, **compiler: Any) -> Checked:
    """PyTorch in channels_last; compiled if there are `compiler` arguments."""
    dtype = DTYPES[reference.precision]
    function: Callable[[Tensor], Any] = InDtype(reference.folded, dtype).to(memory_format=torch.channels_last)
    if compiler:
        function = torch.compile(function, **compiler)

    def run(images: Tensor) -> Any:  # [B, C, H, W] -> [B, ...]
        outputs = function(images.to(dtype, memory_format=torch.channels_last))
        return _own(outputs) if isinstance(outputs, Tensor) else [_own(output) for output in outputs]

    def _own(output: Tensor) -> Tensor:  # [B, ...]
        # a CUDA graph writes its next outputs to the same memory
        return (output.clone() if compiler and output.is_cuda else output).contiguous()

    return reference.checked(run)


def _inductor(reference: Reference) -> Checked:
    """Inductor: weights are constants; a GPU runs its kernels as a CUDA graph."""
    return _pytorch(reference, options={'freezing': True, 'triton.cudagraphs': reference.example.is_cuda})


def _in_a_runtime(reference: Reference, format: str) -> Checked:
    """A separate runtime, which runs an exported file."""
    with tempfile.TemporaryDirectory(prefix='xception_hub') as folder:
        return exported(format, reference, Path(folder) / f'model{FORMATS[format].suffix}')


def _of_format(name: str) -> Engine:
    """The engine that runs exported files of a format on the CPU."""
    row = FORMATS[name]
    precisions = tuple(precision for precision in row.precisions if precision in DTYPES)
    install = f'xception-hub[{row.extra}]'
    return Engine(partial(_in_a_runtime, format=name), row.packages, install, ('cpu',), ('cpu',), precisions)


ENGINES = {
    'pytorch': Engine(_pytorch, devices=('cpu', 'cuda'), auto=('cpu', 'cuda')),
    'inductor': Engine(_inductor, devices=('cpu', 'cuda')),
    'onnxruntime': _of_format('onnx'),
    'openvino': _of_format('openvino'),
    'cudagraphs': Engine(partial(_pytorch, backend='cudagraphs')),
    'tensorrt': Engine(partial(_pytorch, backend='tensorrt'), ('torch_tensorrt',), 'torch-tensorrt'),
}
