"""xception-hub folds cv/1 cv/2 cv/3 cv/4 cv/5

What the runs of a cross-validation found: the mean of each figure over the folds, and how far it is known.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from cyclopts import App

from ..errors import ResumeError, differences, exits_with_message
from .run_directory import METRICS_FILE, SETTINGS_FILE
from .settings import RESUME_MAY_CHANGE

# 97.5 % quantile of Student's t distribution with 1, 2, 3, ... degrees of freedom; beyond, that of the normal one.
T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NOT_FIGURES = ('num_classes', 'num_samples', 'bad_images', 'train_images', 'epoch')

app = App(help=__doc__, version_flags=[])


def summarised(directories: Sequence[Path]) -> dict[str, tuple[float, float]]:
    """The mean of each figure over the folds, and half of its 95 % interval.

    The interval is that of Student's t for the folds' figures. Folds share training images, so that it is somewhat
    narrower than it should be.

    Raises:
        ResumeError: A directory has no finished run, or two of them have the same fold or other settings.
    """
    found: list[dict[str, Any]] = []
    folds: dict[Any, Path] = {}
    settings: dict[str, Any] = {}
    for directory in directories:
        try:
            metrics = json.loads((directory / METRICS_FILE).read_text(encoding='utf-8'))
            own = yaml.safe_load((directory / SETTINGS_FILE).read_text(encoding='utf-8'))
        except (OSError, ValueError) as e:
            raise ResumeError(f'{directory} holds no finished run ({e}). Name the --output of each fold.') from e
        own = {name: value for name, value in own.items() if name not in RESUME_MAY_CHANGE}
        fold = own.pop('fold', None)
        if fold is None or fold in folds:
            raise ResumeError(
                f'{directory} is a run of the fold {fold}, as {folds.get(fold, "none")} is. Name one of each.'
            )
        settings = settings or own
        if different := differences(settings, own):
            raise ResumeError(f'{directory} is no fold of the same evaluation as {directories[0]}: {different[0]}.')
        folds[fold] = directory
        found.append(metrics)
    if len(found) < 2:
        raise ResumeError('Name the directories of two folds or more.')
    names = [n for n, v in found[0].items() if type(v) in (int, float) and n not in NOT_FIGURES]
    names = [name for name in names if all(type(metrics.get(name)) in (int, float) for metrics in found)]
    factor = (T[len(found) - 2] if len(found) - 1 <= len(T) else 1.96) / math.sqrt(len(found))
    values = {name: [float(metrics[name]) for metrics in found] for name in names}
    return {name: (statistics.mean(v), factor * statistics.stdev(v)) for name, v in values.items()}


@app.default
@exits_with_message()
def main(*directories: Path) -> None:
    """Prints each figure's mean over folds, with its 95 % interval.

    Args:
        directories: The --output of each fold's run.
    """
    for name, (mean, half) in summarised(directories).items():
        print(f'{name:24} {mean:.4f} +- {half:.4f}  ({len(directories)} folds)')
