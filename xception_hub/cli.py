"""One tool: `xception-hub COMMAND`, also `python -m xception_hub COMMAND`. Each command is loaded when it is called."""

import difflib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple

from cyclopts import App, CycloptsError, Group, Parameter

from . import __version__, interrupt
from .errors import printable, printable_lines
from .run import run
from .stand_ins import with_stand_ins
from .weights import fingerprints, sources

PACKAGE = Path(__file__).parent
USAGE = 2  # exit status where the command line cannot be read

# Headings of `xception-hub --help`, in order.
KERAS, USE, PAPER, HERE = map(Group.create_ordered, ('Keras', 'Train and use', 'The paper', 'This installation'))


class Recipe(NamedTuple):
    """A command whose code is a script of a clone, or a module of the package.

    Attributes:
        place: The script's path in a clone, or the module's name.
        extra: The extra of `pip install 'xception-hub[EXTRA]'` that brings what the command imports.
        help: One line for `xception-hub --help`.
        has_meta: Whether the command begins in `app.meta`.
        group: Heading of `xception-hub --help` above the command.
    """

    place: str
    extra: str
    help: str
    has_meta: bool = False
    group: Group = USE


RECIPES = {
    'convert': Recipe('conversion/convert.py', 'keras', 'Convert a Keras file into a model directory.', group=KERAS),
    'prove': Recipe('conversion/prove.py', 'keras', 'Compare a converted model with its Keras file.', group=KERAS),
    'to-keras': Recipe('conversion/to_keras.py', 'keras', 'Convert a model directory into a Keras file.', group=KERAS),
    'finetune': Recipe('finetune.py', 'finetune', 'Train a timm model on your own labelled images.', True),
    'folds': Recipe('xception_hub.training.cross_validation', 'finetune', 'Summarise the runs of a cross-validation.'),
    'predict': Recipe('xception_hub.inference.predict', 'finetune', 'Classify images, or save their features.'),
    'explain': Recipe(
        'xception_hub.inference.explain', 'explain', 'Draw heat maps of what made the model choose a class.'
    ),
    'demo': Recipe('xception_hub.inference.demo', 'demo', 'Start a web page that classifies and explains photos.'),
    'export': Recipe('xception_hub.inference.export', 'export', 'Convert a model for ONNX, OpenVINO and others.'),
    'publish': Recipe('xception_hub.directory.publish', 'keras', 'Publish a model directory on the Hugging Face Hub.'),
    'paper': Recipe('xception_hub.paper.__main__', 'paper', "Check the paper's numbers and figures.", group=PAPER),
    'ablations': Recipe('xception_hub.paper.ablations', 'finetune,paper', "Train the paper's variants.", group=PAPER),
    'doctor': Recipe('xception_hub.doctor', '', 'Describe this installation for a bug report.', group=HERE),
}
COMMANDS = ('verify', 'run', *RECIPES)


def verify(source: str, /, *, json_: Annotated[bool, Parameter('--json', negative='')] = False) -> None:
    """Check that weights are those that Keras publishes, by the hashes of the backbone's 234 tensors.

    The exit status is 0 if all tensors are genuine, up to the eps compensation. It is 1 if not, or on an error.

    Args:
        source: Weights to check: a Hub id (org/name or org/name@revision), URL, file or directory.
        json_: Print JSON with the names of all tensors.
    """
    try:
        verification = sources.verify(source)
    except Exception as e:  # networks fail in ways that have no class in common
        sys.exit(f'error: {printable(source)}: {printable_lines(e)}')
    if json_:
        print(json.dumps(dict(source=source, genuine=verification.is_genuine, **asdict(verification)), indent=2))
        sys.exit(not verification.is_genuine)
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
    print('The backbone is that of Keras. The classifier is not verified: it has no fingerprint.')


def script(place: str) -> Path:
    """Path of a script in the wheel, else in the clone around the package."""
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


def loaded(name: str, to_describe: bool = False) -> App:
    """Loads the command of a recipe.

    Args:
        name: Name of the command.
        to_describe: Whether only help will be printed, which works without the command's packages.
    """
    recipe = RECIPES[name]
    try:
        return load(recipe).app
    except ImportError as e:
        if (e.name or '').startswith('xception_hub'):
            raise
        remedy = f"xception-hub {name} needs: pip install 'xception-hub[{recipe.extra}]'"
        if not to_describe:
            sys.exit(f'error: {e}. {remedy}')
    print(f'{remedy}\n', file=sys.stderr)
    return with_stand_ins(lambda: load(recipe), 'xception_hub').app


COMPLETION = '--install-completion'
FILES = {  # shell -> the last line of its completion script, and a replacement that also completes files
    'bash': ('^complete -F', 'complete -o default -F'),
    'zsh': (r'^  esac(?=\n}$)', '  esac || _files'),
}


class Tool(App):
    """An app whose completion falls back to files: Cyclopts does not know which strings are paths."""

    def generate_completion(self, *, shell: Any = None, **kwargs: Any) -> str:
        text = super().generate_completion(shell=shell, **kwargs)
        return re.sub(*FILES[shell], text, flags=re.MULTILINE) if shell in FILES else text


def tool(called: str, to_describe: bool = False) -> App:
    """Builds the tool. Only the called command is loaded, or all of them for completion; others are a line of help."""
    app = Tool(
        name='xception-hub',
        help='Xception of arXiv:1610.02357 for timm, exactly as Keras computes it.',
        version=__version__,
    )
    app.register_install_completion_command(COMPLETION, help='Complete commands and options on TAB.')
    app[COMPLETION].group = app['--help'].group = app['--version'].group = HERE
    app.command(verify, group=KERAS)
    app.command(run, group=USE, usage='Usage: xception-hub run [SCRIPT | -m MODULE] [ARGUMENTS]')
    for number, (name, recipe) in enumerate(RECIPES.items()):
        command = App(help=recipe.help, group=recipe.group, sort_key=number)
        if called == COMPLETION:
            with suppress(SystemExit):  # without the command's packages only its name completes
                command = loaded(name)
                command.help = recipe.help
        elif called == name:
            command = loaded(name, to_describe)
        app.command(command, name=name)
    return app


def main(tokens: Sequence[str] | None = None) -> None:
    """Runs the tool.

    Args:
        tokens: The command line; that of the process if None.

    Raises:
        SystemExit: With status 0 after success; 1 if a check or the command fails; 2 if the command line cannot be
            read; 130 after Ctrl-C. `xception-hub run` exits with the status of its script.
    """
    tokens = sys.argv[1:] if tokens is None else tokens
    to_describe = not {'--help', '-h'}.isdisjoint(tokens)
    called = next((token for token in tokens[:1] if not token.startswith('-')), '')
    if called and called not in COMMANDS:
        near = difflib.get_close_matches(called, COMMANDS, 1)
        hint = f'Did you mean {near[0]}? ' if near else ''
        print(f'error: There is no command {called!r}. {hint}The commands are {", ".join(COMMANDS)}.', file=sys.stderr)
        sys.exit(USAGE)
    if called == 'run' and tokens[1:2] not in (['--help'], ['-h']):
        interrupt.as_usual()
        return run(*tokens[1:])  # the script gets all further arguments unchanged
    try:
        if called in RECIPES and RECIPES[called].has_meta:  # its help is complete only as an app of its own
            sys.argv[0] = f'xception-hub {called}'
            command, words = loaded(called, to_describe).meta, tokens[1:]
        else:
            command, words = tool(called or next(iter(tokens), ''), to_describe), tokens
        interrupt.as_usual()
        command(words, exit_on_error=False)
    except CycloptsError:  # has been printed
        sys.exit(USAGE)
    except KeyboardInterrupt:  # before a command could say what is kept
        print('\nStopped.', file=sys.stderr)
        sys.exit(interrupt.INTERRUPTED)
