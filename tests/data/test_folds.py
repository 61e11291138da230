"""k folds: every image validates once, whole groups, about the same classes; by numbers, by a column, by folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuning import SMALL
from small_images import save_digits

import finetune
from xception_hub.data.splits import folds
from xception_hub.errors import DataError, ResumeError
from xception_hub.training import cross_validation


def run(*arguments: Any) -> None:
    finetune.app.meta([str(argument) for argument in arguments], result_action='return_value')


@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('grouped', [False, True])
def test_folds(grouped: bool, several: bool) -> None:
    generator = np.random.default_rng(0)
    labels = generator.choice(4, 1000, p=[0.5, 0.3, 0.15, 0.05])
    groups = generator.integers(0, 150, 1000) if grouped else np.empty(0, np.int64)
    values = np.eye(4, dtype=np.int64)[labels][:, :3] if several else labels  # images without a class, too
    found = folds(values, 5, 3, groups)
    assert (found == folds(values, 5, 3, groups)).all() and (found != folds(values, 5, 4, groups)).any()
    for fold in range(5):
        inside = found == fold
        if grouped:
            assert not {*groups[inside]} & {*groups[~inside]}
        for label in range(4):
            share = inside[labels == label].mean()
            assert share == pytest.approx(0.2, abs=0.06 if grouped else 0.03)


def test_too_many_folds() -> None:
    with pytest.raises(DataError, match='--folds 5'):
        folds(np.array([0, 1, 0]), 5, 0)
    with pytest.raises(DataError, match='--folds 3'):
        folds(np.array([0, 1, 0, 1]), 3, 0, [0, 0, 1, 1])


def test_a_cross_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each image is validated once; the summary has the mean, and an interval that widens with the spread."""
    photos = save_digits(tmp_path / 'photos', 6)
    outputs, rows = [], list[int]()
    for fold in (1, 2, 3):
        outputs.append(tmp_path / f'{fold}')
        run(*SMALL, '--recipe', 'full', '--epochs', 1, '--dataset', photos, '--fold', fold, '--folds', 3, '--output',
            outputs[-1])  # fmt: skip
        rows += json.loads((outputs[-1] / 'data.json').read_text())['validation_rows']
    assert sorted(rows) == list(range(24))
    assert json.loads((outputs[0] / 'metrics.json').read_text())['split'] == 'fold 1 of 3 of train'
    capsys.readouterr()
    cross_validation.main(*outputs)
    text = capsys.readouterr().out
    values = [json.loads((output / 'metrics.json').read_text())['loss'] for output in outputs]
    mean, half = cross_validation.summarised(outputs)['loss']
    assert f'{mean:.4f} +- {half:.4f}  (3 folds)' in text
    assert mean == pytest.approx(np.mean(values)) and half == pytest.approx(4.303 * np.std(values, ddof=1) / 3**0.5)
    for wrong in ([outputs[0], outputs[0]], [outputs[0], photos], outputs[:1]):
        with pytest.raises(ResumeError):
            cross_validation.summarised(wrong)


def test_a_fold_that_is_none(tmp_path: Path) -> None:
    photos = save_digits(tmp_path / 'photos', 3)
    for fold in ('0', '4', 'x'):
        with pytest.raises(SystemExit, match='--fold 1 to --fold 3'):
            run(*SMALL, '--dataset', photos, '--fold', fold, '--folds', 3, '--output', tmp_path / 'model')
