"""The formats of an exported model as one table: each row writes a file and runs it in its runtime."""

import importlib.util
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from . import quantization

Run = Callable[[Tensor], Tensor | list[Tensor]]

BATCH, HEIGHT, WIDTH = 0, 2, 3  # axes of images [B, C, H, W]
AXES = {BATCH: 'batch', HEIGHT: 'height', WIDTH: 'width'}
INPUT, OUTPUT = 'images', 'output'  # names in the files that name them


@dataclass(frozen=True)
class Format:
    """A kind of file for a runtime.

    Attributes:
        suffix: End of the file's name.
        convert: Converts an exported program into the runtime's object, with names for the outputs.
        store: Writes that object into a file, with named texts as metadata if the format supports them.
        load: Loads a file for a precision into its runtime on the CPU, as a function: images [B, C, H, W] in float32
            -> the output [B, ...] in float32, or a list of several.
        quantize: Converts the runtime's object to int8, calibrated with images [1, C, H, W].
        packages: Modules that it imports in addition to torch.
        quantizers: Further modules that int8 imports.
        extra: The extra of `pip install 'xception-hub[EXTRA]'` that installs them; '' for none.
        precisions: Precisions of the file: 'fp32', 'bf16', 'int8'.
        axes: Axes of the images whose sizes may differ from the example's.
    """

    suffix: str
    convert: Callable[[ExportedProgram, Sequence[str]], Any]
    store: Callable[[Any, Path, Mapping[str, str]], None]
    load: Callable[[Path, str], Run]
    quantize: Callable[[Any, Sequence[Tensor]], Any] | None = None
    packages: tuple[str, ...] = ()
    quantizers: tuple[str, ...] = ()
    extra: str = ''
    precisions: tuple[str, ...] = ('fp32',)
    axes: tuple[int, ...] = (BATCH, HEIGHT, WIDTH)

    def missing(self, precision: str = 'fp32') -> list[str]:
        """Modules that are not installed."""
        return not_installed([*self.packages, *(self.quantizers if precision == 'int8' else ())])

    def write(
        self,
        model: nn.Module,
        example: Tensor,
        path: Path,
        *,
        axes: Sequence[int] = tuple(AXES),
        outputs: Sequence[str] = (OUTPUT,),
        texts: Mapping[str, str] | None = None,
        calibration: Sequence[Tensor] = (),
    ) -> list[str]:
        """Writes a model in one file, or in two that differ in their suffix.

        Args:
            model: The model in evaluation mode, best folded before, see `folding.fold`.
            example: Images [B, C, H, W] of a size that the model takes.
            path: File to write.
            axes: Axes whose sizes may differ from the example's, if format and model allow it.
            outputs: Names of the outputs.
            texts: Texts by name, for the file's metadata if it has any.
            calibration: Images [1, C, H, W] that int8 is calibrated with; none for another precision.

        Returns:
            Names of the axes whose sizes may differ: some of 'batch', 'height', 'width'.

        Raises:
            Exception: The format does not support the model. Errors of exporters have no common class.
        """
        program = exported(model, example, [axis for axis in axes if axis in self.axes])
        with redirect_stdout(io.StringIO()):  # exporters report their progress
            own = self.convert(program, outputs)
            if calibration:
                assert self.quantize
                own = self.quantize(own, calibration)
            self.store(own, path, texts or {})
        return free_axes(program)


def not_installed(modules: Iterable[str]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def exported(model: nn.Module, example: Tensor, axes: Sequence[int]) -> ExportedProgram:
    """Exports a model for images as `example` [B, C, H, W]. Sizes along `axes` stay variable if the model allows it."""
    if BATCH in axes and len(example) == 1:
        example = example.repeat(2, 1, 1, 1)  # torch.export treats a size of 1 as fixed
    shapes = (dict.fromkeys(axes, Dim.AUTO),)
    with torch.no_grad():
        return _once(
            model, (example.shape, *axes), lambda: torch.export.export(model, (example,), dynamic_shapes=shapes)
        )


def _once(source: nn.Module | ExportedProgram, key: Any, make: Callable[[], Any]) -> Any:
    """Returns `make()`, and caches it for other formats as long as `source` exists."""
    made = _made.setdefault(source, {})
    if key not in made:
        made[key] = make()
    return made[key]


_made: WeakKeyDictionary[nn.Module | ExportedProgram, dict[Any, Any]] = WeakKeyDictionary()


def free_axes(program: ExportedProgram) -> list[str]:
    """Returns the names of the axes of images whose sizes are variable in a program."""
    name = program.graph_signature.user_inputs[0]
    shape = next(node for node in program.graph.nodes if node.name == name).meta['val'].shape
    return [AXES[axis] for axis in AXES if not isinstance(shape[axis], int)]


def _to_onnx(program: ExportedProgram, outputs: Sequence[str]) -> Any:
    def make() -> Any:
        made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=outputs)
        assert made is not None
        return made.model_proto

    return _once(program, tuple(outputs), make)


def _store_onnx(model: Any, path: Path, texts: Mapping[str, str]) -> None:
    import onnx

    for axis, name in AXES.items():
        size = model.graph.input[0].type.tensor_type.shape.dim[axis]
        if size.dim_param:
            size.dim_param = name
    onnx.helper.set_model_props(model, dict(texts))
    onnx.save(model, path)


def _load_onnx(path: Path, precision: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda x: _one_or_all([torch.from_numpy(y) for y in session.run(None, {INPUT: x.numpy()})])


def _to_openvino(program: ExportedProgram, outputs: Sequence[str]) -> Any:
    import openvino

    # conversion through ONNX takes a fifth of the time, and the result runs faster
    return openvino.Core().read_model(_to_onnx(program, outputs).SerializeToString())


def _store_openvino(model: Any, path: Path, texts: Mapping[str, str]) -> None:
    import openvino

    for name, text in texts.items():
        model.set_rt_info(text, name)
    openvino.save_model(model, path, compress_to_fp16=False)


def _load_openvino(path: Path, precision: str) -> Run:
    import openvino

    # by default, OpenVINO runs float32 in bfloat16 on CPUs that support it
    hint = {'INFERENCE_PRECISION_HINT': 'bf16' if precision == 'bf16' else 'f32'}
    model = openvino.compile_model(path, 'CPU', hint)
    return lambda x: _one_or_all([torch.from_numpy(y.copy()) for y in model(x.numpy()).values()])


def _as_it_is(program: ExportedProgram, outputs: Sequence[str]) -> ExportedProgram:
    return program


def _store_torch_export(program: ExportedProgram, path: Path, texts: Mapping[str, str]) -> None:
    buffer = io.BytesIO()  # on a full disk, torch's own writer ends the process
    torch.export.save(program, buffer, extra_files=dict(texts))
    path.write_bytes(buffer.getvalue())


def _load_torch_export(path: Path, precision: str) -> Run:
    return _without_gradients(torch.export.load(path).module())


def _store_aoti(program: ExportedProgram, path: Path, texts: Mapping[str, str]) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _load_aoti(path: Path, precision: str) -> Run:
    return _without_gradients(torch._inductor.aoti_load_package(str(path)))


def _store_executorch(program: ExportedProgram, path: Path, texts: Mapping[str, str]) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


def _load_executorch(path: Path, precision: str) -> Run:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method('forward')
    assert method is not None
    # the next call overwrites the memory of the outputs
    return lambda x: _one_or_all([y.clone() for y in method.execute([x])])


def _one_or_all(outputs: list[Tensor]) -> Tensor | list[Tensor]:  # [B, ...] each
    return outputs[0] if len(outputs) == 1 else outputs


def _without_gradients(function: Callable[[Tensor], Any]) -> Run:
    def run(x: Tensor) -> Tensor | list[Tensor]:  # [B, C, H, W] -> [B, ...] each
        with torch.no_grad():
            y = function(x)
        return y if isinstance(y, Tensor) else _one_or_all(list(y))

    return run


FORMATS = {
    'onnx': Format(
        '.onnx',
        _to_onnx,
        _store_onnx,
        _load_onnx,
        partial(quantization.by_nncf, name=INPUT),
        packages=('onnx', 'onnxscript', 'onnxruntime'),
        quantizers=('nncf',),
        extra='export',
        precisions=('fp32', 'int8'),
    ),
    'openvino': Format(
        '.xml',
        _to_openvino,
        _store_openvino,
        _load_openvino,
        quantization.by_nncf,
        packages=('onnx', 'onnxscript', 'openvino'),
        quantizers=('nncf',),
        extra='export',
        precisions=('fp32', 'bf16', 'int8'),
    ),
    'torch-export': Format('.pt2', _as_it_is, _store_torch_export, _load_torch_export, precisions=('fp32', 'bf16')),
    'aoti': Format('.pt2', _as_it_is, _store_aoti, _load_aoti, precisions=('fp32', 'bf16')),
    'executorch': Format(
        '.pte',
        _as_it_is,
        _store_executorch,
        _load_executorch,
        packages=('executorch',),
        extra='executorch',
        axes=(),  # memory is planned for the largest sizes
    ),
}
