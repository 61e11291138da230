"""The engines that run a network for inference, as a table."""

import copy
import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .check import Function
from .exporters import FORMATS, not_installed

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}


class Engine(NamedTuple):
    """A way to run a network.

    Attributes:
        build: Makes a function of images [B, C, H, W] in float32 from a network, an example and the precision. The
            function returns a tensor, or a list or tuple of tensors, in float32. The network is not changed.
        packages: Packages that it imports in addition to torch.
        install: Argument of `pip install` for these packages.
        devices: Types of the devices that it runs on.
        auto: Types of the devices on which it starts within seconds, so that engine='auto' tries it.
        precisions: Precisions that it supports.
    """

    build: Callable[[nn.Module, Tensor, str], Function]
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


def _pytorch(model: nn.Module, example: Tensor, precision: str, **compiler: Any) -> Function:
    """PyTorch in channels_last for images as `example` [B, C, H, W]; compiled if there are `compiler` arguments."""
    dtype = DTYPES[precision]
    function: Function = copy.deepcopy(model).to(dtype).to(memory_format=torch.channels_last)
    if compiler:
        function = torch.compile(function, **compiler)

    def run(images: Tensor) -> Any:  # [B, C, H, W] -> [B, ...]
        outputs = function(images.to(dtype, memory_format=torch.channels_last))
        if isinstance(outputs, Tensor):
            return _own(outputs)
        return [_own(output) for output in outputs]

    def _own(output: Tensor) -> Tensor:  # [B, ...]
        # a CUDA graph writes its next outputs to the same memory
        output = output.clone() if compiler and output.is_cuda else output
        return output.float().contiguous()

    return run


def _inductor(model: nn.Module, example: Tensor, precision: str) -> Function:
    """Inductor for images as `example` [B, C, H, W]: weights are constants; a GPU runs its kernels as a CUDA graph."""
    return _pytorch(model, example, precision, options={'freezing': True, 'triton.cudagraphs': example.is_cuda})


def _exported(model: nn.Module, example: Tensor, precision: str, format: str) -> Function:
    """A separate runtime, which runs the exported file of a format, for images as `example` [B, C, H, W]."""
    with tempfile.TemporaryDirectory(prefix='xception_hub') as folder:
        path = Path(folder) / f'model{FORMATS[format].suffix}'
        FORMATS[format].write(model, example, path)
        run = FORMATS[format].load(path, precision)
    return lambda images: run(images.contiguous())


def _of_format(name: str) -> Engine:
    """The engine that runs exported files of a format on the CPU."""
    row = FORMATS[name]
    precisions = tuple(precision for precision in row.precisions if precision in DTYPES)
    install = f'xception-hub[{row.extra}]'
    return Engine(partial(_exported, format=name), row.packages, install, ('cpu',), ('cpu',), precisions)


ENGINES = {
    'pytorch': Engine(_pytorch, devices=('cpu', 'cuda'), auto=('cpu', 'cuda')),
    'inductor': Engine(_inductor, devices=('cpu', 'cuda')),
    'onnxruntime': _of_format('onnx'),
    'openvino': _of_format('openvino'),
    'cudagraphs': Engine(partial(_pytorch, backend='cudagraphs')),
    'tensorrt': Engine(partial(_pytorch, backend='tensorrt'), ('torch_tensorrt',), 'torch-tensorrt'),
}
