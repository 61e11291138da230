"""What a conversion writes: a directory that `timm.create_model('local-dir:DIR', pretrained=True)` loads."""
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import save_for_hf

from xception_hub import Xception

from .parity import Parity
from .port import Port

__all__ = ['OutputError', 'Preprocessing', 'write']

PARITY_FILE = 'parity.json'

# Keras' name of an input range -> mean and std of the images, whose values timm gives in 0..1.
INPUT_RANGES: dict[str, tuple[float, float]] = {
    'tf': (0.5, 0.5),           # -1..1, keras.applications.xception.preprocess_input
    'unit': (0., 1.),           # 0..1
    'raw': (0., 1 / 255),       # 0..255
}


class OutputError(ValueError):
    """The directory can't be written; the message says why."""


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared when the model was trained, which its file doesn't say.

    Attributes:
        input_range: A key of `INPUT_RANGES`.
        image_size: Height and width in pixels.
        interpolation: timm's name of the resampling.
        crop_pct: Of the resized image's sides that is kept.
        crop_mode: timm's: 'squash' resizes without regard to the aspect ratio, as Keras does; 'center' keeps it.
    """

    input_range: str
    image_size: tuple[int, int]
    interpolation: str
    crop_pct: float = 1.
    crop_mode: str = 'squash'

    def pretrained_cfg(self, channels: int) -> dict[str, Any]:
        """The fields of timm's pretrained cfg."""
        mean, std = INPUT_RANGES[self.input_range]
        height, width = self.image_size
        return dict(
            input_size=(channels, height, width), interpolation=self.interpolation, crop_pct=self.crop_pct,
            crop_mode=self.crop_mode, mean=(mean,) * channels, std=(std,) * channels,
            pool_size=None, test_input_size=None, license=None, origin_url=None)


def write(
        directory: Path, ported: Port, model: Xception, parity: Parity, preprocessing: Preprocessing,
        class_names: Sequence[str] | None,
) -> None:
    """Writes model.safetensors, config.json, README.md and parity.json, all of them or none.

    Raises:
        OutputError: The directory exists and holds something other than a conversion.
    """
    source = dict(file=ported.source.name, sha256=ported.sha256, keras_version=ported.keras_version)
    report = dict(source=source, left_out=ported.left_out, **parity.as_dict())
    model_config: dict[str, Any] = dict(
        pretrained_cfg=dict(preprocessing.pretrained_cfg(model.in_chans), tag=None),
        keras=dict(source, final_activation=ported.final_activation))
    if class_names:
        model_config['label_names'] = list(class_names)
    with _all_or_nothing(directory) as folder:
        save_for_hf(
            model, str(folder), model_config=model_config, safe_serialization=True,
            model_args=dict(drop_rate=ported.model_args['drop_rate']) if ported.model_args.get('drop_rate') else None)
        (folder / PARITY_FILE).write_text(json.dumps(report, indent=2), encoding='utf-8')
        (folder / 'README.md').write_text(_card(ported, parity, preprocessing, class_names), encoding='utf-8')


@contextmanager
def _all_or_nothing(directory: Path) -> Iterator[Path]:
    """A folder beside the directory, which takes its place once the block has ended well."""
    if directory.exists():
        if not directory.is_dir():
            raise OutputError(f'{directory} is a file; name a directory.')
        if any(directory.iterdir()) and not (directory / PARITY_FILE).is_file():
            raise OutputError(f'{directory} holds something other than a conversion; name another directory.')
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f'.{directory.name}.', dir=directory.parent))
    except OSError as e:
        raise OutputError(f'{directory} can not be written: {e}.') from e
    try:
        yield folder
        os.umask(mask := os.umask(0))
        folder.chmod(0o777 & ~mask)  # temporary folders, and files written by way of them, are private
        for file in folder.iterdir():
            file.chmod(0o666 & ~mask)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(folder, directory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


CARD = """\
---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, xception]
---
# Xception, converted from Keras

`{file}` (sha256 `{sha256}`, written by Keras {keras_version}), as the timm model `xception_paper` of
arXiv:1610.02357.

```python
import timm, xception_hub
model = timm.create_model('local-dir:DIRECTORY', pretrained=True).eval()  # or 'hf-hub:ORGANISATION/NAME'
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
```

| | |
|---|---|
| classes | {classes} |
| images | {height}x{width} pixels, {interpolation} resampling, range "{input_range}" |
| final activation in Keras | {final_activation} (the network returns logits) |
| backbone | {backbone} |

## Parity

Relative L2 difference from {reference}, the largest of all modules:

```
{table}
```
"""


def _card(ported: Port, parity: Parity, pre: Preprocessing, class_names: Sequence[str] | None) -> str:
    found = parity.fingerprints
    genuine = f'{found["identical"]} of {sum(found.values())} tensors bit-identical to the weights that Keras publishes'
    return CARD.format(
        file=ported.source.name, sha256=ported.sha256, keras_version=ported.keras_version,
        classes=', '.join(class_names) if class_names else ported.model_args['num_classes'],
        height=pre.image_size[0], width=pre.image_size[1], interpolation=pre.interpolation,
        input_range=pre.input_range, final_activation=ported.final_activation, backbone=genuine,
        reference=parity.reference or 'Keras: not compared, for Keras is not installed', table=parity.table())
