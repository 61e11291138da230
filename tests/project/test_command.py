"""One tool: `xception-hub COMMAND` and `python -m xception_hub COMMAND`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from conftest import ROOT, save_repository
from hub_server import HubServer
from torch import Tensor

from xception_hub.cli import RECIPES, Recipe, main, script


def test_verify_genuine(converted: Path) -> None:
    """As a process."""
    result = subprocess.run(
        [sys.executable, '-m', 'xception_hub', 'verify', converted], cwd=ROOT, text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r'^ +234 +bit-identical$', result.stdout, re.MULTILINE)
    assert 'classifier is not verified' in result.stdout


def test_verify_on_the_hub(hub: HubServer) -> None:
    assert call(main, 'verify', 'smp-hub/xception.imagenet').returncode == 0


def test_verify_other_weights(imagenet_state_dict: dict[str, Tensor], tmp_path: Path) -> None:
    save_repository(tmp_path, {**imagenet_state_dict, 'stem.bn1.bias': imagenet_state_dict['stem.bn1.bias'] + 1})
    result = call(main, 'verify', tmp_path / 'model.safetensors')
    assert result.returncode == 1
    assert re.search(r'^ +1 +different: stem.bn1.bias', result.stdout, re.MULTILINE)


@pytest.mark.parametrize('source', ['nowhere/model.safetensors', 'org/nothing', str(ROOT / 'README.md')])
def test_verify_what_is_no_checkpoint(source: str, hub: HubServer) -> None:
    result = call(main, 'verify', source)
    assert result.returncode == 1
    assert result.stderr.startswith(f'error: {source}: ')


def test_help_and_version() -> None:
    text = call(main, '--help').stdout
    assert 'verify' in text and '--install-completion' in text
    assert re.fullmatch(r'\d+\.\d+\.\d+', call(main, '--version').stdout.strip())


def test_help_of_every_command() -> None:
    """Every command is listed, and each option has a sentence."""
    listed = call(main, '--help').stdout
    assert all(name in listed for name in ('verify', *RECIPES))
    for name in ('verify', *RECIPES):
        text = call(main, name, '--help').stdout
        assert f'Usage: xception-hub {name}' in text


@pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES)
def test_recipes_are_there(recipe: Recipe) -> None:
    """In a clone, the tool runs the clone's scripts."""
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


def test_missing_extra(tmp_path: Path) -> None:
    """A command whose packages are not there names the `pip install` that brings them."""
    command, module, extra = 'convert', 'h5py', 'keras'
    (tmp_path / f'{module}.py').write_text(f'raise ModuleNotFoundError("No module named {module!r}", name={module!r})')
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run(
        [sys.executable, '-m', 'xception_hub', command, 'nothing'],
        env={**os.environ, 'PYTHONPATH': path}, cwd=tmp_path, text=True, capture_output=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.strip().endswith(f"xception-hub {command} needs: pip install 'xception-hub[{extra}]'")
    assert 'Traceback' not in result.stderr


WITHOUT_EXTRAS = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition('.')[0] in PACKAGES:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Blocked())
from xception_hub.cli import RECIPES, main
for name in RECIPES:
    try:
        main([name, '--help'])
    except SystemExit as e:
        assert not e.code, e
"""


def test_help_without_extras() -> None:
    """What the extras bring is not needed for any command's help, which is the same to the letter."""
    packages = 'accelerate captum datasets fsspec gradio h5py keras matplotlib pyarrow scipy torchmetrics'
    code = WITHOUT_EXTRAS.replace('PACKAGES', repr(packages.split()))
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ''.join(call(main, name, '--help').stdout for name in RECIPES)
    for command, extra in (('convert', 'keras'), ('finetune', 'finetune'), ('demo', 'demo')):
        assert f"xception-hub {command} needs: pip install 'xception-hub[{extra}]'" in result.stderr


def test_headings_of_finetune() -> None:
    """Each group of settings stands under its name, and no box has --help alone."""
    text = call(main, 'finetune', '--help').stdout
    headings = re.findall(r'^╭─ (.+?) ─+╮$', text, re.MULTILINE)
    assert headings == ['Parameters', 'Data', 'Model', 'Optimization', 'Augmentation', 'Machine', 'Output']


def test_finetune(tmp_path: Path) -> None:
    """The same program as `accelerate launch finetune.py`, with its exit status."""
    result = call(main, 'finetune', '--dataset', tmp_path / 'nothing', '--output', tmp_path / 'run', '--metric', 'top1')
    assert result.returncode == 1 and result.stderr.startswith('error: ')
