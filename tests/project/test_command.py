"""One tool: `xception-hub COMMAND` and `python -m xception_hub COMMAND`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from conftest import ROOT, save_repository
from hub_server import HubServer
from small_images import save_pieces
from torch import Tensor

from xception_hub.cli import RECIPES, main, script
from xception_hub.models import build, classifier


def test_verify_genuine(converted: Path) -> None:
    result = call(main, 'verify', converted)
    assert result.returncode == 0, result.stderr
    assert '234 of 234 tensors bit-identical' in result.stdout and 'classifier is not verified' in result.stdout


def test_verify_on_the_hub(hub: HubServer) -> None:
    assert call(main, 'verify', 'smp-hub/xception.imagenet').returncode == 0


def test_verify_other_weights(imagenet_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    save_repository(tmp_path, {**imagenet_state_dict, 'stem.bn1.bias': imagenet_state_dict['stem.bn1.bias'] + 1})
    result = call(main, 'verify', tmp_path / 'model.safetensors')
    assert result.returncode == 1
    assert re.search(r'^different: stem.bn1.bias$', result.stdout, re.MULTILINE)
    result = call(main, 'verify', tmp_path / 'model.safetensors', '--json')
    found = json.loads(result.stdout)
    assert (result.returncode, found['genuine'], found['different']) == (1, False, ['stem.bn1.bias'])
    assert (len(found['identical']), found['compensated'], found['missing']) == (233, [], [])


@pytest.mark.parametrize('source', ['nowhere/model.safetensors', 'org/nothing', str(ROOT / 'README.md')])
def test_verify_what_is_no_checkpoint(source: str, hub: HubServer) -> None:
    result = call(main, 'verify', source)
    assert result.returncode == 1
    assert result.stderr.startswith(f'error: {source}: ')


def test_help_and_version() -> None:
    text = call(main, '--help').stdout
    assert all(name in text for name in ('verify', '--install-completion', *RECIPES))
    assert re.fullmatch(r'\d+\.\d+\.\d+', call(main, '--version').stdout.strip())


def test_recipes_are_there() -> None:
    """In a clone, the tool runs the clone's scripts."""
    for recipe in RECIPES.values():
        if recipe.place.endswith('.py'):
            assert script(recipe.place) == ROOT / recipe.place and script(recipe.place).is_file()


@pytest.mark.parametrize(
    ('given', 'hint'), [('convrt', 'Did you mean convert?'), ('prove-it', 'Did you mean prove?'), ('x', '')]
)
def test_unknown_command(given: str, hint: str) -> None:
    result = call(main, given)
    assert result.returncode == 2
    assert result.stderr.startswith(f'error: There is no command {given!r}. {hint}')
    assert 'convert, prove' in result.stderr


WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition('.')[0] in packages:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

packages = PACKAGES
sys.meta_path.insert(0, Blocked())
from xception_hub.cli import main
for words in COMMANDS:
    if words == ['pyarrow']:
        packages.remove('pyarrow')
        continue
    try:
        main(words)
    except SystemExit as e:
        print(f'{words[0]} ends: {e.code or 0}', file=sys.stderr)
"""
OF_EXTRAS = 'accelerate captum datasets fsspec gradio h5py keras matplotlib pyarrow scipy torchmetrics'


def test_without_extras(tmp_path: Path) -> None:
    """Any command's help needs none, and is the same to the letter; other uses name the extra that they need.

    With those of `predict` alone, it classifies a photo, and a folder of photos into parts of a table.
    """
    (tmp_path / 'weights.h5').write_bytes(b'\x89HDF\r\n\x1a\n')
    photos = save_pieces(tmp_path / 'photos', 2)
    model = build.build('test_resnet', 2, False, {}, 64)
    (tmp_path / 'model').mkdir()
    classifier.save(tmp_path / 'model', model, build.Transforms(model).config, ['cup', 'fork'], False)
    predict = ['predict', '--model', str(tmp_path / 'model')]
    commands = [
        *([name, '--help'] for name in RECIPES),
        ['finetune', '--dataset', 'photos'],
        ['convert', str(tmp_path / 'weights.h5'), '-o', 'x', '--input-range', 'tf', '--interpolation', 'nearest'],
        ['predict', str(tmp_path / 'weights.h5'), '--model', 'test_resnet'],
        ['pyarrow'],  # is there from here on
        [*predict, str(photos[0])],
        [*predict, str(photos[0].parent), '-o', str(tmp_path / 'rows')],
    ]
    code = WITHOUT.replace('PACKAGES', repr(OF_EXTRAS.split())).replace('COMMANDS', repr(commands))
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True)
    helps = ''.join(call(main, name, '--help').stdout for name in RECIPES)
    assert result.stdout.startswith(helps), result.stderr
    assert result.stdout.removeprefix(helps).startswith(f'{photos[0]}\t')
    ends = [end for _, end in re.findall('^(.+) ends: (.+)', result.stderr, re.MULTILINE)]
    refused = ends[len(RECIPES) : -2]
    assert [end for end in ends if end not in refused] == ['0'] * (len(RECIPES) + 2), result.stderr
    for end, extra in zip(refused, ('finetune', 'keras', 'finetune'), strict=True):
        assert end.startswith('error: ') and f"pip install 'xception-hub[{extra}]'" in end
    assert 'Traceback' not in result.stderr and (tmp_path / 'rows' / 'part-00000-of-00001.parquet').is_file()


def test_flags_are_alike() -> None:
    """The same words in all commands that have such a thing."""
    texts = {name: call(main, name, '--help').stdout for name in RECIPES}
    for names, words in {
        'convert to-keras finetune predict explain export': '--output -o',
        'finetune predict explain demo export': '--model',
        'convert finetune predict explain export paper': '--image-size',
        'finetune predict': '--workers',
    }.items():
        assert all(words in texts[name] for name in names.split()), words


def test_headings_of_finetune() -> None:
    """Each group of settings stands under its name, and no box has --help alone."""
    text = call(main, 'finetune', '--help').stdout
    headings = re.findall(r'^╭─ (.+?) ─+╮$', text, re.MULTILINE)
    assert headings == ['Parameters', 'Data', 'Model', 'Optimization', 'Augmentation', 'Machine', 'Output']
