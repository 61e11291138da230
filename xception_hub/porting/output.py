"""What a conversion writes: a directory that `timm.create_model('local-dir:DIR', pretrained=True)` loads."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo
from timm.models import save_for_hf

from .. import Xception
from ..directory.card import CONFIG_FILE, PARITY_FILE, render
from ..errors import DirectoryError
from ..training.models import let_transformers_load
from .parity import Parity
from .port import Port
from .preprocessing import Preprocessing

__all__ = ['write']


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
    with _all_or_nothing(directory) as folder:
        save_for_hf(
            model,
            str(folder),
            model_config=model_config,
            safe_serialization=True,
            model_args=dict(drop_rate=ported.model_args['drop_rate']) if ported.model_args.get('drop_rate') else None,
        )
        let_transformers_load(folder / CONFIG_FILE)
        (folder / PARITY_FILE).write_text(json.dumps(report, indent=2), encoding='utf-8')
        (folder / 'README.md').write_text(render(folder), encoding='utf-8')


@contextmanager
def _all_or_nothing(directory: Path) -> Iterator[Path]:
    """A folder beside the directory, which takes its place once the block has ended well."""
    if directory.exists():
        if not directory.is_dir():
            raise DirectoryError(f'{directory} is a file; name a directory.')
        if any(directory.iterdir()) and not (directory / PARITY_FILE).is_file():
            raise DirectoryError(f'{directory} holds something other than a conversion; name another directory.')
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f'.{directory.name}.', dir=directory.parent))
    except OSError as e:
        raise DirectoryError(f'{directory} can not be written: {e}.') from e
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
