"""The formats of an exported model as one table: each row writes a file and runs it in its runtime."""

import copy
import importlib.util
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .check import BATCH_SIZE, Checked, Function, Reference

BATCH, HEIGHT, WIDTH = 0, 2, 3  # axes of images [B, C, H, W]
AXES = {BATCH: 'batch', HEIGHT: 'height', WIDTH: 'width'}
INPUT, OUTPUT = 'images', 'output'  # names in the files that name them


class Content(NamedTuple):
    """What a file is made of.

    Attributes:
        program: The exported network.
        outputs: Names of its outputs.
        texts: Texts by name, for the file's metadata if it has any.
        calibration: Images [1, C, H, W] that set the ranges of int8; none for another precision.
    """

    program: ExportedProgram
    outputs: Sequence[str] = (OUTPUT,)
    texts: Mapping[str, str] = {}
    calibration: Sequence[Tensor] = ()


class Format(NamedTuple):
    """A kind of file for a runtime.

    Attributes:
        suffix: End of the file's name.
        write: Writes a file.
        load: Loads a file for a precision into its runtime on the CPU, as a function: images [B, C, H, W] in float32
            -> outputs [B, ...] in float32.
        packages: Modules that it imports in addition to torch.
        extra: The extra of `pip install 'xception-hub[EXTRA]'` that installs them; '' for none.
        precisions: Precisions of the file: 'fp32', 'bf16', 'int8'.
        axes: Axes of the images whose sizes may differ from the example's.
        casts: Whether the network computes in bf16 because it is written in it; otherwise the runtime casts.
    """

    suffix: str
    write: Callable[[Content, Path], None]
    load: Callable[[Path, str], Function]
    packages: tuple[str, ...] = ()
    extra: str = ''
    precisions: tuple[str, ...] = ('fp32', 'bf16')
    axes: tuple[int, ...] = (BATCH, HEIGHT, WIDTH)
    casts: bool = True

    def missing(self, precision: str = 'fp32') -> list[str]:
        """Modules that are not installed."""
        return not_installed([*self.packages, *(['nncf'] if precision == 'int8' else [])])


class InDtype(nn.Module):
    """A network that computes in another data type. Its images [B, C, H, W] and outputs [B, ...] are float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = copy.deepcopy(network).to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:  # [B, C, H, W]
        outputs = self.network(x.to(self.dtype))
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)


def exported(name: str, reference: Reference, path: Path, **content: Any) -> Checked:
    """Writes a model's file in a format, loads it in its runtime, and compares it with the model.

    Args:
        name: One of `FORMATS`.
        reference: The model.
        path: File to write. OpenVINO writes another one beside it.
        **content: See `Content`.

    Raises:
        OptimizeError: The outputs differ.
        Exception: Format or runtime do not support the model. Their errors have no common class.
    """
    row, network, precision = FORMATS[name], reference.folded, reference.precision
    if row.casts and precision == 'bf16':
        network = InDtype(network, torch.bfloat16)
    height, width = reference.example.shape[2:]  # a head of one size may accept another size with maps of equal size
    takes_any = reference.other_size and reference.takes((2 * height, 2 * width))
    # some compilers are wrong at other sizes; their files get the fixed size of the example
    for axes in dict.fromkeys([tuple(AXES) if takes_any else (BATCH,), (BATCH,)]):
        program = _program(network, reference.example, [axis for axis in axes if axis in row.axes])
        free = free_axes(program)
        with torch.no_grad(), redirect_stdout(io.StringIO()):  # exporters report their progress
            row.write(Content(program, **content), path)
            run = row.load(path, precision)
            checked = reference.checked(run, BATCH_SIZE if 'batch' in free else 1)
        if checked.any_size or 'height' not in free:
            break
    return checked._replace(free_axes=free)


def not_installed(modules: Iterable[str]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def _program(model: nn.Module, example: Tensor, axes: Sequence[int]) -> ExportedProgram:
    """Exports a model for images as `example` [B, C, H, W]. Sizes along `axes` stay variable if the model allows it."""
    if BATCH in axes and len(example) == 1:
        example = example.repeat(2, 1, 1, 1)  # torch.export treats a size of 1 as fixed
    shapes = (dict.fromkeys(axes, Dim.AUTO),)
    return _once(model, (example.shape, *axes), lambda: torch.export.export(model, (example,), dynamic_shapes=shapes))


def _once(source: nn.Module | ExportedProgram, key: Any, make: Callable[[], Any]) -> Any:
    """Returns `make()`, and caches it for other formats as long as `source` exists."""
    made = _made.setdefault(source, {})
    if key not in made:
        with torch.no_grad():
            made[key] = make()
    return made[key]


_made: WeakKeyDictionary[nn.Module | ExportedProgram, dict[Any, Any]] = WeakKeyDictionary()


def free_axes(program: ExportedProgram) -> list[str]:
    """Returns the names of the axes of images whose sizes are variable in a program."""
    name = program.graph_signature.user_inputs[0]
    shape = next(node for node in program.graph.nodes if node.name == name).meta['val'].shape
    return [AXES[axis] for axis in AXES if not isinstance(shape[axis], int)]


def _in_int8(model: Any, calibration: Sequence[Any]) -> Any:
    """Quantizes an ONNX or OpenVINO model, with ranges from its inputs for some photos."""
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters

    nncf.set_log_level('ERROR')
    # One range for all channels: ranges per channel were far off on photos unlike the calibration photos (see
    # docs/export.md), and ONNX Runtime does not support them.
    activations = QuantizationParameters(per_channel=False)
    advanced = nncf.AdvancedQuantizationParameters(activations_quantization_params=activations)
    return nncf.quantize(model, nncf.Dataset(calibration), subset_size=len(calibration), advanced_parameters=advanced)


def _to_onnx(content: Content) -> Any:
    def make() -> Any:
        made = torch.onnx.export(
            content.program, dynamo=True, verbose=False, input_names=[INPUT], output_names=content.outputs
        )
        assert made is not None
        return made.model_proto

    return _once(content.program, tuple(content.outputs), make)


def _write_onnx(content: Content, path: Path) -> None:
    import onnx

    model = _to_onnx(content)
    if content.calibration:
        model = _in_int8(model, [{INPUT: x.numpy()} for x in content.calibration])
    _name_axes(model.graph)
    for node in model.graph.node:
        del node.metadata_props[:]  # names of source files on this machine
    onnx.helper.set_model_props(model, dict(content.texts))
    onnx.save(model, path)


def _name_axes(graph: Any) -> None:
    """Names the variable sizes of an ONNX graph, which torch.export calls s77 and so on, by the axes of the images."""
    images = graph.input[0].type.tensor_type.shape.dim
    names = {images[axis].dim_param: name for axis, name in AXES.items() if images[axis].dim_param}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:  # a symbol, or a formula of symbols
                size.dim_param = re.sub(r'\w+', lambda symbol: names.get(symbol[0], symbol[0]), size.dim_param)


def _load_onnx(path: Path, precision: str) -> Function:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {INPUT: x.contiguous().numpy()})]


def _write_openvino(content: Content, path: Path) -> None:
    import openvino

    # conversion through ONNX takes a fifth of the time, and the result runs faster
    model = openvino.Core().read_model(_to_onnx(content).SerializeToString())
    if content.calibration:
        model = _in_int8(model, [x.numpy() for x in content.calibration])
    for name, text in content.texts.items():
        model.set_rt_info(text, name)
    openvino.save_model(model, path, compress_to_fp16=False)


def _load_openvino(path: Path, precision: str) -> Function:
    import openvino

    # by default, OpenVINO runs float32 in bfloat16 on CPUs that support it
    hint = {'INFERENCE_PRECISION_HINT': 'bf16' if precision == 'bf16' else 'f32'}
    model = openvino.compile_model(path, 'CPU', hint)
    return lambda x: [torch.from_numpy(y.copy()) for y in model(x.contiguous().numpy()).values()]


def _write_torch_export(content: Content, path: Path) -> None:
    buffer = io.BytesIO()  # on a full disk, torch's own writer ends the process
    torch.export.save(content.program, buffer, extra_files=dict(content.texts))
    path.write_bytes(buffer.getvalue())


def _load_torch_export(path: Path, precision: str) -> Function:
    return torch.export.load(path).module()


def _write_executorch(content: Content, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(content.program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


def _load_executorch(path: Path, precision: str) -> Function:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method('forward')
    assert method is not None
    # the next call overwrites the memory of the outputs
    return lambda x: [y.clone() for y in method.execute([x])]


ONNX = ('onnx', 'onnxscript')
FORMATS = {
    'onnx': Format('.onnx', _write_onnx, _load_onnx, (*ONNX, 'onnxruntime'), 'export', ('fp32', 'int8')),
    'openvino': Format(
        '.xml', _write_openvino, _load_openvino, (*ONNX, 'openvino'), 'export', ('fp32', 'bf16', 'int8'), casts=False
    ),
    'torch-export': Format('.pt2', _write_torch_export, _load_torch_export),
    'executorch': Format(
        '.pte',
        _write_executorch,
        _load_executorch,
        ('executorch',),
        'executorch',
        ('fp32',),
        axes=(),  # memory is planned for the largest sizes
    ),
}
