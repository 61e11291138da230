"""How a checkpoint's images are normalized: by layers or constants beside the network, or by what config.json says."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .checkpoint_files import CheckpointFile
from .lineages import LAYOUTS, NORMALIZATION, Recognised

PREPARATION = ('mean', 'std', 'input_size', 'interpolation', 'crop_pct')  # entries of timm's pretrained cfg
NOT_STATED = 'mean and std are assumed: the checkpoint does not contain them'
IMAGENET_BGR = (0.406, 0.456, 0.485)  # means of blue, green and red, for images from 0 to 1


def preparation_of(file: CheckpointFile, found: Recognised, overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of timm's pretrained cfg that say how images are prepared, with a note on where they are from.

    Args:
        file: The file, with what config.json beside it says.
        found: The network in it, whose assumptions may become one more.
        overlay: Entries that the caller gives.

    Raises:
        CheckpointError: The file's constants can be read in several ways, and the caller gives none.
    """
    config = file.pretrained_cfg
    own = {key: config[key] for key in PREPARATION if key in config}
    notes = ['mean and std are those of the config beside the file'] if {'mean', 'std'} <= own.keys() else [NOT_STATED]
    given = {key: overlay[key] for key in PREPARATION if key in overlay}
    if {'mean', 'std'} <= given.keys():
        return {**own, **given, 'notes': ()}
    pairs = _pairs(file, found)
    if pairs:
        read = {name: _for_unit_range(pair, found) for name, pair in pairs.items()}
        values = {value and value[:2] for value in read.values()}
        if len(values) != 1 or None in values:
            raise CheckpointError(_question(pairs, found))
        mean, std, divided = next(value for value in read.values() if value)
        if not any(mean) and set(std) == {1.0} and not divided:
            found.assumed.append(f'images of 0 to 1, which {next(iter(pairs))}mean and std leave as they are')
        own |= {'mean': mean, 'std': std}
        names = ', '.join(f'{name}mean and {name}std' for name in pairs)
        notes = [f'mean and std are those of {names} in the file{divided}']
    return {**own, **given, 'notes': tuple(notes)}


def _pairs(file: CheckpointFile, found: Recognised) -> dict[str, dict[str, list[float]]]:
    """Beginning of the names of two constants -> 'mean' and 'std' -> values by channel."""
    pairs: dict[str, dict[str, list[float]]] = {}
    for name, tensor in found.normalization.items():
        match = NORMALIZATION.search(name)
        assert match
        pairs.setdefault(name[: match.start('what')], {})[match['what'].lower()] = tensor.double().flatten().tolist()
    for path, module in file.modules.items():
        constants = {what: module.state.get(what) for what in ('mean', 'std')}
        if module.kind.endswith('.Normalize') and all(_are_numbers(values) for values in constants.values()):
            pairs[f'{path}.'] = {what: [float(value) for value in values] for what, values in constants.items()}
    return pairs


def _are_numbers(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)


def _for_unit_range(
    pair: Mapping[str, list[float]], found: Recognised
) -> tuple[tuple[float, ...], tuple[float, ...], str] | None:
    """Mean and deviation for images from 0 to 1, and what was done; None if the constants do not say for which."""
    channels = found.tensors['stem.conv1.weight'].shape[1]
    full = {what: values * channels if len(values) == 1 else values for what, values in pair.items()}
    mean, std = full.get('mean', []), full.get('std', [])
    if len(mean) != channels or len(std) != channels or not all(map(math.isfinite, mean + std)):
        return None
    largest = max(mean + std)
    is_known = min(mean) >= 0 and min(std) > 0 and (largest <= 1 or 10 <= largest <= 255)
    scale = 255 if largest > 1 else 1
    scaled = [tuple(float(str(np.float32(value / scale))) for value in values) for values in (mean, std)]
    if not is_known or (channels == 3 and np.allclose(scaled[0], IMAGENET_BGR, 0, 0.003)):
        return None
    return scaled[0], scaled[1], ', divided by 255' if scale > 1 else ''


def _question(pairs: Mapping[str, Mapping[str, list[float]]], found: Recognised) -> str:
    values = '; '.join(f'{name}{what} is {values}' for name, pair in pairs.items() for what, values in pair.items())
    conv1 = next(name for name, ours in LAYOUTS[found.layout].items() if ours == 'stem.conv1')
    weight = f"state['{found.prefix}{conv1}.weight']"
    return (
        f'{found.source} normalizes images in a way that can be read in several ways: {values}. Pass the values for '
        f'images of 0 to 1: pretrained_cfg_overlay=dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), with yours. If '
        f'they are those of blue, green and red, exchange the channels of the first convolution in the state dict '
        f'before: {weight} = {weight}.flip(1).'
    )
