"""What a user declares of a Keras file, beside what the file says: preparation of images, names of classes."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
from timm.data import ImageNetInfo

from ..errors import KerasFileError
from .consistency import Finding
from .output import read_report
from .port import Port
from .preprocessing import Preprocessing

MOST_SCALE_OF_BYTES = 1 / 64
IMAGES = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')  # what prepares them in timm

# Preparation of keras.applications, with timm's crop for 299 pixels.
RELEASE_PREPROCESSING = Preprocessing('tf', (299, 299), 'bicubic', crop_pct=0.8975, crop_mode='center')


def choose_preprocessing(
    ported: Port,
    input_range: str | None = None,
    interpolation: str | None = None,
    size: int | None = None,
    class_names: Sequence[str] | None = (),
) -> Preprocessing:
    """How images were prepared, by the flags, else by the file.

    Args:
        ported: What `port` read.
        input_range: Value of --input-range.
        interpolation: Value of --interpolation.
        size: Value of --size.
        class_names: Value of --class-names; None if it was not given, which is asked for together with the rest.

    Raises:
        KerasFileError: Something is said by neither; the message names all flags that are missing.
    """
    structure = ported.structure
    known: dict[str, Any] = dict(image_size=ported.image_size, rescaling=structure.rescaling)
    if structure.steps and np.abs(structure.rescaling[0]).max() <= MOST_SCALE_OF_BYTES:
        known['input_range'] = 'raw'  # a model that divides its images by something near 127 or 255 takes bytes
    known |= structure.preset or {}
    if ported.is_release:
        known = asdict(RELEASE_PREPROCESSING)
    flags = dict(input_range=input_range, interpolation=interpolation, image_size=(size, size) if size else None)
    known.update({name: value for name, value in flags.items() if value})
    options = {'input_range': '--input-range', 'interpolation': '--interpolation', 'image_size': '--size'}
    missing = [option for name, option in options.items() if not known.get(name)]
    if class_names is None and ported.model_args['num_classes'] and read_class_names(ported, None) is None:
        missing.append('--class-names')
    if missing:
        raise KerasFileError(
            f'{ported.source} does not say how its images were prepared, which changes what the model computes, or '
            f'what its classes are called. Pass {" and ".join(missing)}; --help explains the choices.'
        )
    if structure.head.one_size and known['image_size'] != ported.image_size:
        raise KerasFileError(
            f'{ported.source}: its head takes images of {ported.image_size} pixels alone. Leave out --size.'
        )
    return Preprocessing(**known)


def read_class_names(ported: Port, class_names: list[str] | None) -> list[str] | None:
    """Names of the classes in order; None if there are none.

    Args:
        ported: What `port` read. Keras' release has the classes of ImageNet.
        class_names: Value of --class-names: names, names separated by commas, a file with one a line, or 'none'.
    """
    if class_names is None and ported.is_release and ported.model_args['num_classes'] == 1000:
        return ImageNetInfo().label_names()
    if class_names == ['none']:
        return None
    if class_names and len(class_names) == 1:
        if Path(class_names[0]).is_file():
            return Path(class_names[0]).read_text(encoding='utf-8').splitlines()
        return [name.strip() for name in class_names[0].split(',')]
    return class_names


def check_declared(directory: Path) -> list[Finding]:
    """Whether timm prepares images, and names classes, as was declared when the file was converted.

    Args:
        directory: Directory with config.json, which timm reads, and parity.json, which keeps what was declared.
    """
    declared = read_report(directory).get('declared')
    if not declared:
        return []
    cfg: Any = timm.create_model(f'local-dir:{directory}').pretrained_cfg
    names, found = declared['class_names'], cfg.get('label_names')
    same = (names or None) == (list(found) if found else None)
    summary = f'{"as" if same else "NOT as"} they were declared'
    checks = [Finding('class names', same, True, summary, dict(declared=names, found=found))]
    expected = Preprocessing(**declared['preprocessing']).pretrained_cfg(cfg['input_size'][0])
    differs = {name: cfg.get(name) for name in IMAGES if _plain(cfg.get(name)) != _plain(expected[name])}
    where = [f'{name} is {value!r}, not {expected[name]!r}' for name, value in differs.items()]
    summary = f"timm's settings of images are {'NOT ' if differs else ''}the declared ones"
    return [*checks, Finding('input', not differs, True, ': '.join([summary, *where]), dict(differs=differs))]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
