"""The formats of an exported model as one table: how a file is written, and how its runtime computes with it."""

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

Run = Callable[[Tensor], Tensor | list[Tensor]]

BATCH, HEIGHT, WIDTH = 0, 2, 3  # axes of images [B, C, H, W]
AXES = {BATCH: 'batch', HEIGHT: 'height', WIDTH: 'width'}
INPUT, OUTPUT = 'images', 'output'  # names in the files that name them


@dataclass(frozen=True)
class Format:
    """A kind of file for a runtime.

    Attributes:
        suffix: End of the file's name.
        packages: Modules that writing and running the file import, beside torch.
        extra: The extra of `pip install 'xception-hub[EXTRA]'` that brings them; '' for none.
        precisions: What the file can compute in: 'fp32', 'bf16', 'int8'.
        axes: Axes of the images whose sizes may differ from the example's.
        save: Writes an exported program into a file.
        load: The function of a written file, run in its runtime on the CPU, in float32 where the file has float32:
            images [B, C, H, W] in float32 -> the output, or a list of several.
    """

    suffix: str
    packages: tuple[str, ...]
    extra: str
    precisions: tuple[str, ...]
    axes: tuple[int, ...]
    save: Callable[[ExportedProgram, Path], None]
    load: Callable[[Path], Run]

    def write(self, model: nn.Module, example: Tensor, path: Path, axes: Sequence[int] = tuple(AXES)) -> list[str]:
        """Writes a model, which is in evaluation mode and best folded before, see `folding.fold`.

        Args:
            model: The model.
            example: Images [B, C, H, W] of a size that the model takes.
            path: File to write.
            axes: Axes whose sizes may differ from the example's, as far as format and model allow.

        Returns:
            Names of the axes whose sizes may differ: some of 'batch', 'height', 'width'.

        Raises:
            Exception: The model has what the format lacks. Errors of exporters have no class in common.
        """
        program = export_program(model, example, [axis for axis in axes if axis in self.axes])
        with redirect_stdout(io.StringIO()):  # exporters report their progress
            self.save(program, path)
        return free_axes(program)


def export_program(model: nn.Module, example: Tensor, axes: Sequence[int]) -> ExportedProgram:
    """The program of a model; sizes along `axes` stay free where the model allows."""
    if BATCH in axes and len(example) == 1:
        example = example.repeat(2, 1, 1, 1)  # torch.export takes a size of 1 for a fixed one
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=(dict.fromkeys(axes, Dim.AUTO),))


def free_axes(program: ExportedProgram) -> list[str]:
    """Names of the axes of the images that are not fixed in a program."""
    name = program.graph_signature.user_inputs[0]
    shape = next(node for node in program.graph.nodes if node.name == name).meta['val'].shape
    return [AXES[axis] for axis in AXES if not isinstance(shape[axis], int)]


def _save_onnx(program: ExportedProgram, path: Path) -> None:
    exported = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=[INPUT], output_names=_output_names(program)
    )
    assert exported is not None
    exported.save(path, external_data=False)


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda x: _one_or_all([torch.from_numpy(y) for y in session.run(None, {INPUT: x.numpy()})])


def _save_openvino(program: ExportedProgram, path: Path) -> None:
    import openvino

    model = openvino.convert_model(program)
    model.inputs[0].set_names({INPUT})
    for output, name in zip(model.outputs, _output_names(program)):
        output.set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


def _load_openvino(path: Path) -> Run:
    import openvino

    # left to itself, OpenVINO computes a float32 model in bfloat16 on CPUs that have it
    model = openvino.compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda x: _one_or_all([torch.from_numpy(y.copy()) for y in model(x.numpy()).values()])


def _load_torch_export(path: Path) -> Run:
    return _without_gradients(torch.export.load(path).module())


def _save_aoti(program: ExportedProgram, path: Path) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _load_aoti(path: Path) -> Run:
    return _without_gradients(torch._inductor.aoti_load_package(str(path)))


def _save_executorch(program: ExportedProgram, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


def _load_executorch(path: Path) -> Run:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method('forward')
    assert method is not None
    # the outputs lie in memory that the next call overwrites
    return lambda x: _one_or_all([y.clone() for y in method.execute([x])])


def _output_names(program: ExportedProgram) -> list[str]:
    count = len(program.graph_signature.user_outputs)
    return [OUTPUT] if count == 1 else [f'{OUTPUT}{i}' for i in range(count)]


def _one_or_all(outputs: list[Tensor]) -> Tensor | list[Tensor]:
    return outputs[0] if len(outputs) == 1 else outputs


def _without_gradients(function: Callable[[Tensor], Any]) -> Run:
    def run(x: Tensor) -> Tensor | list[Tensor]:
        with torch.inference_mode():
            y = function(x)
        return y if isinstance(y, Tensor) else _one_or_all(list(y))

    return run


FORMATS = {
    'onnx': Format(
        '.onnx', ('onnx', 'onnxscript', 'onnxruntime'), 'export', ('fp32', 'int8'), tuple(AXES), _save_onnx, _load_onnx
    ),
    'openvino': Format(
        '.xml', ('openvino',), 'export', ('fp32', 'bf16', 'int8'), tuple(AXES), _save_openvino, _load_openvino
    ),
    'torch-export': Format(
        '.pt2', (), '', ('fp32', 'bf16', 'int8'), tuple(AXES), torch.export.save, _load_torch_export
    ),
    'aoti': Format('.pt2', (), '', ('fp32', 'bf16'), tuple(AXES), _save_aoti, _load_aoti),
    # its memory is planned for the largest sizes, so that it has the example's
    'executorch': Format(
        '.pte', ('executorch',), 'executorch', ('fp32', 'int8'), (), _save_executorch, _load_executorch
    ),
}
