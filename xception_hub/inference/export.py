"""xception-hub export MODEL --format openvino --precision int8 --calibration photos -o exported

Writes a model for another runtime. The file is run there on photos, and kept only if its outputs match the model's.
"""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from torch import Tensor, nn

from ..directory.config import final_activation_of
from ..directory.write import new_directory
from ..errors import ExportError, OptimizeError, SettingsError, exits_with_message
from ..models.build import TimmModel, Transforms, build
from ..models.class_names import names_of
from ..timing import device_model
from ..weights.sources import source_of
from . import preprocess
from .check import Reference, built
from .exporters import FORMATS, exported
from .photo_batches import read_photos, sample_batch
from .snippets import readme, summary

REPORT_FILE = 'export.json'

MOST_COMPARED, MOST_CALIBRATION, LEAST_CALIBRATION = 32, 300, 10  # photos

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


def export(
    name: str,
    directory: Path,
    format: str,
    precision: str = 'fp32',
    *,
    image_size: int | None = None,
    images: Path | None = None,
    calibration: Path | None = None,
    grey_maximum: int | None = None,
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
        grey_maximum: See `xception_hub.open_image`. None means the value in the model's config.json, if any.

    Returns:
        The report, with the content of export.json.

    Raises:
        SettingsError: There is no such format, it lacks the precision or a package, or int8 has no calibration.
        ModelError: There is no such model, or it does not take images of this size.
        DataError: A folder has no photos.
        DirectoryError: The directory contains other files, or cannot be written.
        ExportError: The runtime does not support the model, or its outputs differ.
    """
    check_format(format, precision, calibration)
    with new_directory(directory, REPORT_FILE) as folder:
        source = f'local-dir:{name}' if Path(name).is_dir() else name
        model = build(source, None, True, {}, image_size).eval()
        transforms = Transforms(model, image_size)
        transforms.grey_maximum = grey_maximum or transforms.grey_maximum
        ranges = read_photos(calibration, transforms, MOST_CALIBRATION, LEAST_CALIBRATION) if calibration else None
        photos = read_photos(images, transforms, MOST_COMPARED) if images else (ranges or sample_batch(transforms))
        about = described(model, source, transforms, format, precision)
        network, example = Outputs(model), photos.images[:1]
        content = dict(
            outputs=network.names,
            texts={'xception_hub': json.dumps(about)},
            calibration=ranges.images.split(1) if ranges else (),
        )
        try:
            reference = Reference(network, example, precision, photos._replace(images=photos.images[:MOST_COMPARED]))
            made = built(format, partial(exported, format, reference, folder / about['file'], **content))
        except OptimizeError as e:
            more = (
                'Pass more --calibration photos like those that the model will classify, or choose'
                if ranges
                else 'Choose'
            )
            raise ExportError(f'{e} {more} another --format or --precision.') from e
        seconds, busy = reference.measured({'eager': network, 'exported': made.run})
        report = {
            **about,
            'free_axes': made.free_axes,
            'comparison': asdict(made.comparison),
            'left_out': [*(ranges.left_out if ranges else []), *(photos.left_out if photos is not ranges else [])],
            'megabytes': sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
            'seconds_per_image': seconds,
            'notes': busy,
            'machine': device_model('cpu'),
        }
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2), encoding='utf-8')
        (folder / 'README.md').write_text(readme(report), encoding='utf-8')
        if preprocess.is_able(transforms.config):
            (folder / preprocess.FILE).write_text(preprocess.code(), encoding='utf-8')
    return report


def check_format(format: str, precision: str, calibration: Path | None) -> None:
    """Raises a SettingsError that names the fault and the alternatives."""
    if not (row := FORMATS.get(format)):
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


@app.default
@exits_with_message(OSError)
def main(
    model: str,
    *,
    format: Literal['onnx', 'openvino', 'torch-export', 'executorch'],
    output: Annotated[Path, Parameter(alias='-o')],
    precision: Literal['fp32', 'bf16', 'int8'] = 'fp32',
    image_size: int | None = None,
    images: Path | None = None,
    calibration: Path | None = None,
    grey_maximum: int | None = None,
) -> None:
    """Write MODEL for another runtime, and compare the file there with the model.

    Args:
        model: Directory that finetune or convert wrote, or a name for timm.create_model.
        format: onnx for ONNX Runtime, openvino for Intel's CPUs, torch-export for torch.export.load, executorch for
            phones.
        output: Directory to write: the model's file, export.json, preprocess.py, and README.md with code that runs the
            file. An earlier export in it is replaced.
        precision: fp32, bf16 (openvino, torch-export) or int8 (onnx, openvino).
        image_size: Height and width of the images in pixels. By default the model's own size.
        images: Folder of photos for the comparison. By default the calibration photos, else one photo from Matplotlib.
        calibration: Folder of photos that set the ranges of int8: 100 to 300, like those that the model will classify.
        grey_maximum: Value of white in grey images of more than 8 bits: 4095 for 12 bits, 65535 for 16.
    """
    report = export(
        model, output, format, precision,
        image_size=image_size, images=images, calibration=calibration, grey_maximum=grey_maximum,
    )  # fmt: skip
    for reason in report['left_out']:
        print(f'Left out: {reason}', file=sys.stderr)
    print(f'{summary(report)}\nWritten: {output}')
