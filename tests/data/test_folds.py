"""k folds: every image validates once, whole groups, about the same classes; by numbers, by a column, by folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets_read import load
from finetuning import SMALL
from small_images import save_digits, save_pieces

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
    values = np.eye(4, dtype=np.int64)[labels] if several else labels
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


def test_a_column_of_folds(tmp_path: Path) -> None:
    save_pieces(tmp_path, 9, 32)
    lines = ['image,label,fold', *(f'{number:03}.png,{"xy"[number % 2]},{number % 3}' for number in range(9))]
    (tmp_path / 'table.csv').write_text('\n'.join(lines))
    with pytest.raises(DataError, match='--fold 0'):
        load(tmp_path / 'table.csv')
    data = load(tmp_path / 'table.csv', fold='1')
    assert (len(data.train), len(data.validation), data.validation.name) == (6, 3, '1')
    assert [Path(cell['path']).stem for _, cell in data.validation.cells()] == ['001', '004', '007']
    with pytest.raises(DataError, match="no fold '7' beside others; it has 0, 1, 2"):
        load(tmp_path / 'table.csv', fold='7', split_column='fold')


def test_folders_of_folds(tmp_path: Path) -> None:
    paths = save_pieces(tmp_path / 'pieces', 12, 32)
    for number, path in enumerate(paths):
        place = tmp_path / 'photos' / f'fold{number % 3}' / 'xy'[number // 3 % 2]
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    with pytest.raises(DataError, match='--fold fold0'):
        load(tmp_path / 'photos')
    data = load(tmp_path / 'photos', fold='fold1')
    assert (data.class_names, len(data.train), len(data.validation)) == (['x', 'y'], 8, 4)
    assert {Path(cell['path']).parent.parent.name for _, cell in data.validation.cells()} == {'fold1'}
