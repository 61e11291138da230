"""xception-hub export MODEL --format openvino --precision int8 --calibration photos -o exported

Writes a model for another runtime. The file is run there on photos, and kept only if its outputs match the model's.
"""

import copy
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, Parameter
from torch import Tensor, nn

from ..directory.config import final_activation_of
from ..directory.write import new_directory
from ..errors import ExportError, OptimizeError, SettingsError, exits_with_message, in_one_line
from ..models.build import TimmModel, Transforms, build
from ..models.class_names import names_of
from ..timing import device_model, in_turn, timed
from ..weights.sources import source_of
from .check import BATCH_SIZE, LEAST_COSINE, Comparison, Reference
from .exporters import AXES, BATCH, FORMATS, Format
from .folding import folded
from .photo_batches import read_photos, sample_batch
from .snippets import readme, summary

REPORT_FILE = 'export.json'

MOST_COMPARED, MOST_CALIBRATION, LEAST_CALIBRATION = 32, 300, 10  # photos
ROUNDS, SECONDS = 20, 4.0  # of a measurement of speed, which ends when one of both is reached

app = App(help=__doc__, version_flags=[])


class Outputs(nn.Module):
    """The exported outputs of a model: images [B, C, H, W] -> logits [B, classes], if any, and features [B, D]."""

    def __init__(self, model: TimmModel) -> None:
        super().__init__()
        self.model = model
        self.names = ('logits', 'features') if model.num_classes else ('features',)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # [B, C, H, W]
        maps = self.model.forward_features(x)
        features = self.model.forward_head(maps, pre_logits=True)
        return (self.model.forward_head(maps), features) if len(self.names) > 1 else (features,)


class InDtype(nn.Module):
    """A network that computes in another data type. Its images [B, C, H, W] and outputs [B, ...] are float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = copy.deepcopy(network).to(dtype), dtype

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # [B, C, H, W]
        return tuple(output.float() for output in self.network(x.to(self.dtype)))


def export(
    name: str,
    directory: Path,
    format: str,
    precision: str = 'fp32',
    *,
    image_size: int | None = None,
    images: Path | None = None,
    calibration: Path | None = None,
) -> dict[str, Any]:
    """Writes a model's file for a runtime, with the preparation of images, a report and a README with code to run it.

    The file is first run in its runtime and compared with the model. The directory is written completely or not at all.

    Args:
        name: A model directory, or a name for timm.create_model.
        directory: Directory to write. It may contain an earlier export, which is replaced.
        format: One of `FORMATS`.
        precision: 'fp32', 'bf16' or 'int8'.
        image_size: Height and width of the images in pixels; None for the model's own.
        images: Folder of photos for the comparison. By default the calibration photos, else one from Matplotlib.
        calibration: Folder of photos that set the ranges of int8.

    Returns:
        The report, with the content of export.json.

    Raises:
        SettingsError: There is no such format, it lacks the precision or a package, or int8 has no calibration.
        ModelError: There is no such model, or it does not take images of this size.
        DataError: A folder has no photos.
        DirectoryError: The directory contains other files, or cannot be written.
        ExportError: The runtime does not support the model, or its outputs differ.
    """
    row = checked_format(format, precision, calibration)
    with new_directory(directory, REPORT_FILE) as folder:
        source = f'local-dir:{name}' if Path(name).is_dir() else name
        model = build(source, None, True, {}, image_size).eval()
        transforms = Transforms(model, image_size)
        ranges = read_photos(calibration, transforms, MOST_CALIBRATION, LEAST_CALIBRATION) if calibration else None
        photos = read_photos(images, transforms, MOST_COMPARED) if images else (ranges or sample_batch(transforms))
        about = described(model, source, transforms, format, precision)
        network = Outputs(model)
        example = photos.images[:1]
        compared_on = photos.images[:MOST_COMPARED]
        try:
            reference = Reference(network, example, precision, compared_on, f'{len(compared_on)} {photos.words}')
        except OptimizeError as e:
            raise ExportError(str(e)) from e
        file = folder / f'model{row.suffix}'
        with torch.no_grad():
            try:
                # some compilers are wrong at other sizes; their files get the fixed size of the example
                for axes in dict.fromkeys([axes_of(reference), (BATCH,)]):
                    free = row.write(
                        in_precision(network, precision, format), example, file, axes=axes, outputs=network.names,
                        texts={'xception_hub': json.dumps(about)}, calibration=ranges.images.split(1) if ranges else (),
                    )  # fmt: skip
                    run = row.load(file, precision)
                    comparison, any_size = reference.compare(run, BATCH_SIZE if 'batch' in free else 1)
                    if reference.is_same(comparison) and (any_size or 'height' not in free):
                        break
            except Exception as e:  # of exporters and runtimes, which have no class in common
                raise ExportError(
                    f'{format} cannot run {name} in {precision}: {in_one_line(e)} Choose another --format, one of '
                    f'{", ".join(FORMATS)}.'
                ) from e
            check(reference, comparison, format)
            seconds = in_turn({
                'eager': timed(lambda: network(example)), 'exported': timed(lambda: run(example))
            }, ROUNDS, SECONDS)  # fmt: skip
        report = {
            **about,
            'free_axes': free,
            'comparison': asdict(comparison),
            'left_out': [*(ranges.left_out if ranges else []), *(photos.left_out if photos is not ranges else [])],
            'megabytes': sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
            'seconds_per_image': seconds,
            'machine': device_model('cpu'),
        }
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2), encoding='utf-8')
        (folder / 'README.md').write_text(readme(report), encoding='utf-8')
    return report


def checked_format(format: str, precision: str, calibration: Path | None) -> Format:
    """Returns the row of a format, or raises a SettingsError that names the fault and the alternatives."""
    row = FORMATS.get(format)
    if row is None:
        raise SettingsError(f'There is no format {format!r}: it is one of {", ".join(FORMATS)}.')
    if precision not in row.precisions:
        able = [name for name, other in FORMATS.items() if precision in other.precisions]
        raise SettingsError(
            f'{format} has no {precision}, only {", ".join(row.precisions)}. Formats with {precision}: '
            f'{", ".join(able)}.'
        )
    if missing := row.missing(precision):
        raise SettingsError(
            f"{format} in {precision} needs {', '.join(missing)}: pip install 'xception-hub[{row.extra}]'."
        )
    if precision == 'int8' and calibration is None:
        raise SettingsError(
            f'int8 needs photos to set its ranges. Name a folder by --calibration with at least {LEAST_CALIBRATION}, '
            f'better 100 to {MOST_CALIBRATION}, photos like those that the model will classify.'
        )
    if precision != 'int8' and calibration is not None:
        raise SettingsError(f'--calibration is for int8 only, and the precision is {precision}. Leave it out.')
    return row


def described(model: TimmModel, source: str, transforms: Transforms, format: str, precision: str) -> dict[str, Any]:
    """Returns what a user of the file needs, in types that JSON can express."""
    config = source_of(source).read_config() if source.startswith(('local-dir:', 'hf-hub:')) else {}
    several = config.get('problem_type') == 'multi_label_classification'
    return dict(
        model=source.removeprefix('local-dir:'),
        format=format,
        precision=precision,
        file=f'model{FORMATS[format].suffix}',
        input='images [batch, channels, height, width], float32',
        preprocessing=transforms.config,
        **({'grey_maximum': transforms.grey_maximum} if transforms.grey_maximum else {}),
        outputs=list(Outputs(model).names),
        class_names=names_of(model) if model.num_classes else [],
        final_activation='sigmoid' if several else final_activation_of(config),
    )


def axes_of(reference: Reference) -> tuple[int, ...]:
    """Axes of images along which a network takes other sizes than the example's."""
    height, width = reference.example.shape[2:]  # a head of one size may accept another size with maps of equal size
    return tuple(AXES) if reference.other_size and reference.takes((2 * height, 2 * width)) else (BATCH,)


def in_precision(network: nn.Module, precision: str, format: str) -> nn.Module:
    """Folds batch normalization if torch.fx can trace the network, and converts it to the data type of a precision."""
    network, _ = folded(network)  # without folding, it is only slower
    if precision != 'bf16' or format == 'openvino':  # OpenVINO runs a float32 file in bf16
        return network
    return InDtype(network, torch.bfloat16)


def check(reference: Reference, comparison: Comparison, format: str) -> None:
    """Raises an ExportError if the outputs of a file differ from the model's."""
    if reference.is_same(comparison):
        return
    if reference.tolerance is None:
        raise ExportError(
            f'{format} in {reference.precision} differs from the model: on {comparison.photos}, the smallest cosine of '
            f'features is {comparison.feature_cosine:.3f}, and must be at least {LEAST_COSINE}. Pass more '
            f'--calibration photos like those that the model will classify, or choose --precision fp32.'
        )
    raise ExportError(
        f'{format} differs from the model: on {comparison.photos}, the relative difference of outputs is '
        f'{comparison.difference:.1e}, above {reference.tolerance:.0e} in {reference.precision}. '
        f'Choose another --format.'
    )


@app.default
@exits_with_message(OSError)
def main(
    model: str,
    /,
    *,
    format: Literal['onnx', 'openvino', 'torch-export', 'aoti', 'executorch'],
    output: Annotated[Path, Parameter(alias='-o')],
    precision: Literal['fp32', 'bf16', 'int8'] = 'fp32',
    image_size: int | None = None,
    images: Path | None = None,
    calibration: Path | None = None,
) -> None:
    """Write MODEL for another runtime, and compare the file there with the model.

    Args:
        model: Directory that finetune or convert wrote, or a name for timm.create_model.
        format: onnx for ONNX Runtime, openvino for Intel's CPUs, torch-export for torch.export.load, aoti for machine
            code of this kind of CPU, executorch for phones.
        output: Directory to write: the model's file, export.json, and README.md with code that runs the file. An
            earlier export in it is replaced.
        precision: fp32, bf16 (openvino, torch-export, aoti) or int8 (onnx, openvino).
        image_size: Height and width of the images in pixels. By default the model's own size.
        images: Folder of photos for the comparison. By default the calibration photos, else one photo from Matplotlib.
        calibration: Folder of photos that set the ranges of int8: 100 to 300, like those that the model will classify.
    """
    report = export(model, output, format, precision, image_size=image_size, images=images, calibration=calibration)
    for reason in report['left_out']:
        print(f'Left out: {reason}', file=sys.stderr)
    print(f'{summary(report)}\nWritten: {output}')
