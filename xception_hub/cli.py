"""One tool: `xception-hub COMMAND`, also `python -m xception_hub COMMAND`. Each command is loaded when it is called."""

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from cyclopts import App

from . import __version__
from .weights import fingerprints, sources

PACKAGE = Path(__file__).parent


class Recipe(NamedTuple):
    """A command whose code is a script of a clone, or a module of the package.

    Attributes:
        place: The script's path in a clone, or the module's name.
        extra: The extra of `pip install 'xception-hub[EXTRA]'` that brings what the command imports.
        help: One line for `xception-hub --help`.
        has_meta: Whether the command begins in `app.meta`.
    """

    place: str
    extra: str
    help: str
    has_meta: bool = False


RECIPES = {
    'convert': Recipe('conversion/convert.py', 'keras', 'Convert a Keras file into a model directory for timm.'),
    'prove': Recipe('conversion/verify.py', 'keras', 'Prove that a model directory computes what its Keras file does.'),
    'to-keras': Recipe('conversion/to_keras.py', 'keras', 'Write a model directory as a Keras file.'),
    'publish': Recipe('conversion/publish.py', 'keras', 'Publish a model directory on the Hugging Face Hub.'),
    'finetune': Recipe('finetune.py', 'finetune', 'Adapt a timm model to a dataset or a folder of images.', True),
    'predict': Recipe('xception_hub.training.predict', 'finetune', 'Classify images, or write their features.'),
    'paper': Recipe('xception_hub.paper.__main__', 'paper', 'Check and draw what the paper states.'),
    'ablations': Recipe('xception_hub.paper.ablations', 'finetune,paper', "Train the paper's variants."),
}


def verify(source: str, /) -> None:
    """Count how many of the backbone's 234 tensors are those that Keras publishes.

    The command ends with status 0 if all are, up to the eps compensation; with 1 if not, or if SOURCE cannot be read.

    Args:
        source: Hub id (org/name or org/name@revision), address, file or directory.
    """
    try:
        verification = sources.verify(source)
    except Exception as e:  # networks fail in ways that have no class in common
        sys.exit(f'error: {source}: {e}')
    total = len(fingerprints.genuine()['sha256'])
    rows = {
        'bit-identical': verification.identical,
        'equal up to the eps compensation': verification.compensated,
        'different': verification.different,
        'missing': verification.missing,
    }
    print(f'{source}: {total} tensors of the backbone')
    for label, names in rows.items():
        print(f'{len(names):5}  {label}' + (f': {names[0]}, ...' if names and 'identical' not in label else ''))
    if not verification.is_genuine:
        sys.exit('not the weights that Keras publishes')
    print('The backbone is that of Keras. What is not verified: the classifier, of which there is no fingerprint.')


def script(place: str) -> Path:
    """A script in the wheel, else in the clone around the package."""
    inside = PACKAGE / 'recipes' / place
    return inside if inside.is_file() else PACKAGE.parent / place


def load(recipe: Recipe) -> ModuleType:
    """Runs a recipe's file, or imports its module."""
    if not recipe.place.endswith('.py'):
        return importlib.import_module(recipe.place)
    path = script(recipe.place)
    spec = importlib.util.spec_from_file_location(f'xception_hub_recipe_{path.stem}', path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def loaded(name: str) -> App:
    """The command of a recipe."""
    recipe = RECIPES[name]
    try:
        own = load(recipe).app
    except ImportError as e:
        if (e.name or '').startswith('xception_hub'):
            raise
        sys.exit(f"error: {e}. xception-hub {name} needs: pip install 'xception-hub[{recipe.extra}]'")
    return own.meta if recipe.has_meta else own


def main(tokens: Sequence[str] | None = None) -> None:
    """Runs the tool.

    Args:
        tokens: The command line; that of the process if None.
    """
    tokens = sys.argv[1:] if tokens is None else tokens
    called = next((token for token in tokens[:1] if not token.startswith('-')), None)
    known = ['verify', *RECIPES]
    if called is not None and called not in known:
        near = difflib.get_close_matches(called, known, 1)
        hint = f'Did you mean {near[0]}? ' if near else ''
        sys.exit(f'error: There is no command {called!r}. {hint}The commands are {", ".join(known)}.')
    if called and called in RECIPES and RECIPES[called].has_meta:  # its help is whole only where it stands alone
        sys.argv[0] = f'xception-hub {called}'
        loaded(called)(tokens[1:])
        return
    app = App(
        name='xception-hub',
        help='Xception of arXiv:1610.02357 for timm, exactly as Keras computes it.',
        version=__version__,
    )
    app.register_install_completion_command()
    app.command(verify)
    for name, recipe in RECIPES.items():
        app.command(loaded(name) if name == called else App(help=recipe.help), name=name)
    app(tokens)
