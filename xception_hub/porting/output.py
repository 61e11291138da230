"""What a conversion writes: a directory that `timm.create_model('local-dir:DIR', pretrained=True)` loads."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo

from .. import Xception
from ..directory.card import render
from ..directory.write import PARITY_FILE, new_directory, write_model
from ..files import write_text
from .parity import Parity
from .port import Port
from .preprocessing import Preprocessing


def write(
    directory: Path,
    ported: Port,
    model: Xception,
    parity: Parity,
    preprocessing: Preprocessing,
    class_names: Sequence[str] | None,
) -> None:
    """Writes model.safetensors, config.json, README.md and parity.json, all of them or none.

    Raises:
        DirectoryError: The directory exists and holds something other than a conversion.
    """
    source = dict(file=ported.source.name, sha256=ported.sha256, keras_version=ported.keras_version)
    declared = dict(preprocessing=asdict(preprocessing), class_names=list(class_names) if class_names else None)
    report = dict(source=source, left_out=ported.left_out, declared=declared, **parity.as_dict())
    model_config: dict[str, Any] = dict(
        pretrained_cfg=dict(preprocessing.pretrained_cfg(model.in_chans), tag=None),
        keras=dict(
            source,
            final_activation=ported.final_activation,
            input_range=preprocessing.input_range,
            rescaling=ported.structure.rescaling,
        ),
    )
    if ported.final_activation == 'sigmoid':
        model_config['problem_type'] = 'multi_label_classification'
    if class_names:
        model_config['label_names'] = list(class_names)
        if list(class_names) == ImageNetInfo().label_names():
            model_config['label_descriptions'] = ImageNetInfo().label_descriptions(as_dict=True)
    rate = ported.model_args.get('drop_rate')
    with new_directory(directory, PARITY_FILE) as folder:
        write_model(folder, model, model_config, dict(drop_rate=rate) if rate else {})
        (folder / PARITY_FILE).write_text(json.dumps(report, indent=2), encoding='utf-8')
        (folder / 'README.md').write_text(render(folder), encoding='utf-8')


def read_report(directory: Path) -> dict[str, Any]:
    """What parity.json says; {} if there is none.

    Raises:
        OSError: It is not JSON.
    """
    file = directory / PARITY_FILE
    try:
        return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}
    except ValueError as e:
        raise OSError(f'{file} is not JSON ({e}); convert again.') from e


def update_report(directory: Path, parity: Parity) -> None:
    """Replaces the proofs in parity.json, and keeps what it says of the source."""
    write_text(directory / PARITY_FILE, json.dumps({**read_report(directory), **parity.as_dict()}, indent=2))
