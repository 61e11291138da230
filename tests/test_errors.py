"""Text that comes from a file reaches terminals, cards and pages without its controls, and never at any length."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from random_model import random_model

import xception_hub
from xception_hub import cli
from xception_hub.directory.card import render
from xception_hub.directory.write import write_model
from xception_hub.errors import MAX_LINE, CheckpointError, KerasFileError, XceptionHubError, printable, printable_lines
from xception_hub.inference import predict
from xception_hub.inference.predictor import Predictor
from xception_hub.training.report import ENVIRONMENT

HOSTILE = {
    'title of the terminal': '\x1b]0;owned\x07',
    'colour': '\x1b[31m',
    'one byte for ESC [': '\x9b2J',
    'line': 'x\nerror: all is well',
    'return': 'x\rall is well',
    'separator of lines': '\u2028',
    'right to left': 'gpj.\u202etxt',
    'isolate': '\u2066',
    'invisible': '\u200b\U000e0041',
    'half a character': '\ud800',
    'long': 'x' * 100_000,
}
ALLOWED = '\u200c\u200d\u3000\xa0'
# a class for each; labels travel as JSON, in which half a character has no place
LABELS = [text for name, text in HOSTILE.items() if name != 'half a character']


def assert_harmless(text: str, most: int = MAX_LINE + 10) -> None:
    for line in text.replace('\t', ' ').split('\n'):
        assert all(c.isprintable() or c in ALLOWED for c in line), ascii(line)
        assert len(line) < most
        assert line != 'error: all is well'


@pytest.mark.parametrize('kind', HOSTILE)
def test_printable(kind: str) -> None:
    assert_harmless(printable(HOSTILE[kind]), 210)
    assert_harmless(printable_lines(f'{HOSTILE[kind]}'.replace('\n', '')))
    assert_harmless(str(XceptionHubError(printable(HOSTILE[kind]))))
    assert_harmless(str(KerasFileError(HOSTILE[kind])), 2010)


@pytest.mark.parametrize('text', ['Käse', '猫\u3000犬', 'क्\u200dष', '👩\u200d🔬', 'n°\xa04', 'a\\b', ''])
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text
    assert str(CheckpointError(f'{text}\n{text}')) == f'{text}\n{text}'


@pytest.fixture(scope='module')
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose classes have hostile names."""
    folder = tmp_path_factory.mktemp('model')
    model = random_model(num_classes=len(LABELS), width_multiplier=0.25, min_img_size=32)
    args = dict(width_multiplier=0.25, min_img_size=32)
    data = dict(model.pretrained_cfg, input_size=(3, 64, 64), crop_mode='center')
    write_model(folder, model, dict(num_classes=len(LABELS), label_names=LABELS), args, data)
    parity = dict(
        source=dict(file='x\x1b[31m.h5', sha256='`\x1b', keras_version='3\n# \x9b'),
        reading='\x1b\u202e', passed=True, proofs=[dict(proof='\x1b[2J', passed=True)],
    )  # fmt: skip
    (folder / 'parity.json').write_text(json.dumps(parity))
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new('RGB', (64, 64), 'red').save(tmp_path / 'red\x1b[31m.png')
    return tmp_path / 'red\x1b[31m.png'


@pytest.mark.parametrize('kind', [kind for kind in HOSTILE if kind != 'half a character'])
def test_names_of_tensors(kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """In the warning about what is left out, in the error about what is unknown, and in that of `verify`."""
    model = random_model(num_classes=2, width_multiplier=0.25)
    file, tensors = tmp_path / 'model.safetensors', {**model.state_dict(), f'optimizer.{HOSTILE[kind]}': torch.ones(1)}
    header = {'xception_hub': json.dumps(dict(width_multiplier=0.25))}
    safetensors.torch.save_file(tensors, file, metadata=header)
    xception_hub.from_checkpoint(file)
    assert any('left out optimizer.' in str(warning.message) for warning in recwarn)
    for warning in recwarn:
        assert_harmless(str(warning.message))
    safetensors.torch.save_file({HOSTILE[kind]: torch.ones(1)}, file)
    with pytest.raises(CheckpointError) as error:
        xception_hub.from_checkpoint(file)
    assert_harmless(str(error.value))
    with pytest.raises(SystemExit) as end:
        cli.verify(str(file))
    assert_harmless(str(end.value))


def test_predictions(directory: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table on the screen is escaped; JSON stays data."""
    red = Image.new('RGB', (64, 64), 'red')
    labels = {row['label'] for row in Predictor(str(directory), engine='eager').predict([red])}
    assert labels <= set(LABELS)
    predict.main(str(photo), model=str(directory), device='cpu')
    out, err = capsys.readouterr()
    assert_harmless(out, 1000)
    assert_harmless(err)
    assert out.count('\n') == 1
    predict.main(str(photo), model=str(directory), device='cpu', json_=True)
    assert json.loads(capsys.readouterr().out)['label'] in LABELS


def test_card(directory: Path) -> None:
    card = render(directory, 'org/name')
    assert_harmless(card)
    assert 'written by Keras 3 ' in card and '\n# \\' not in card


@pytest.mark.parametrize('change', [dict(architecture="x', y"), dict(model_args={'a=1), b': 1})], ids=str)
def test_code_of_a_card(change: dict[str, Any], directory: Path, tmp_path: Path) -> None:
    """What stands in code to copy is the name of a model or of an argument."""
    config = json.loads((directory / 'config.json').read_text())
    (tmp_path / 'model.safetensors').symlink_to(directory / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps({**config, **change}))
    with pytest.raises(XceptionHubError, match='name of a model or an argument'):
        render(tmp_path)


def test_report() -> None:
    """Its templates."""
    page = ENVIRONMENT.from_string('{{ name }}')
    for text in HOSTILE.values():
        assert_harmless(page.render(name=text.replace('\n', '')))


@pytest.mark.needs('gradio')
def test_demo(directory: Path, photo: Path) -> None:
    """Its answers."""
    from xception_hub.inference import demo

    assert_harmless(demo.Demo(str(directory)).answer([str(photo)]).replace('data:', '\n'), 10**6)
