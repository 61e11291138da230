"""One tool: `xception-hub COMMAND`, also `python -m xception_hub COMMAND`. Each command is loaded when it is called."""

import difflib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple

from cyclopts import App, CycloptsError, Group, Parameter

from . import __version__, interrupt
from .errors import WeightsError, XceptionHubError, exits_with_message, listed, printable
from .run import run

PACKAGE = Path(__file__).parent
USAGE = 2  # exit status where the command line cannot be read

# Headings of `xception-hub --help`, in order.
KERAS, USE, PAPER, HERE = map(Group.create_ordered, ('Keras', 'Train and use', 'The paper', 'This installation'))


class Recipe(NamedTuple):
    """A command whose code is a script of a clone, or a module of the package.

    Attributes:
        place: The script's path in a clone, or the module's name in the package.
        extra: The extra of `pip install 'xception-hub[EXTRA]'` that brings what the command imports, beside its help.
        help: One line for `xception-hub --help`.
        group: Heading of `xception-hub --help` above the command.
    """

    place: str
    extra: str
    help: str
    group: Group = USE


RECIPES = {
    'convert': Recipe('conversion/convert.py', 'keras', 'Convert a Keras file into a model directory.', KERAS),
    'prove': Recipe('conversion/prove.py', 'keras', 'Compare a converted model with its Keras file.', KERAS),
    'to-keras': Recipe('conversion/to_keras.py', 'keras', 'Convert a model directory into a Keras file.', KERAS),
    'finetune': Recipe('finetune.py', 'finetune', 'Train a timm model on your own labelled images.'),
    'folds': Recipe('training.cross_validation', 'finetune', 'Summarise the runs of a cross-validation.'),
    'predict': Recipe('inference.predict', 'predict', 'Classify images, or save their features.'),
    'explain': Recipe('inference.explain', 'explain', 'Draw heat maps of what made the model choose a class.'),
    'demo': Recipe('inference.demo', 'demo', 'Start a web page that classifies photos and shows heat maps.'),
    'export': Recipe('inference.export', 'export', 'Convert a model for ONNX, OpenVINO and others.'),
    'publish': Recipe('directory.publish', 'keras', 'Publish a model directory on the Hugging Face Hub.'),
    'paper': Recipe('paper.__main__', 'paper', "Check the paper's numbers and figures.", PAPER),
    'ablations': Recipe('paper.ablations', 'finetune,paper', "Train the paper's variants.", PAPER),
    'doctor': Recipe('doctor', '', 'Describe this installation for a bug report.', HERE),
}
COMMANDS = ('verify', 'run', *RECIPES)


@exits_with_message()
def verify(source: str, /, *, json_: Annotated[bool, Parameter('--json', negative='')] = False) -> None:
    """Check that weights are those that Keras publishes, by the hashes of the backbone's 234 tensors.

    The exit status is 0 if all tensors are genuine, up to the eps compensation. It is 1 if not, or on an error.

    Args:
        source: Weights to check: a Hub id (org/name or org/name@revision), URL, file or directory.
        json_: Print JSON with the names of all tensors.
    """
    from .weights import sources

    try:
        verification = sources.verify(source)
    except Exception as e:  # networks fail in ways that have no class in common
        raise WeightsError(f'{printable(source)}: {e}') from e
    if json_:
        print(json.dumps(dict(source=source, genuine=verification.is_genuine, **asdict(verification)), indent=2))
        sys.exit(not verification.is_genuine)
    print(f'{source}: {verification}')
    for kind, names in asdict(verification).items():
        if names and kind != 'identical':
            print(f'{kind}: {listed(names)}')
    if not verification.is_genuine:
        sys.exit('not the weights that Keras publishes')
    print('The backbone is that of Keras. The classifier is not verified: it has no fingerprint.')


def script(place: str) -> Path:
    """Path of a script in the wheel, else in the clone around the package."""
    inside = PACKAGE / 'recipes' / place
    return inside if inside.is_file() else PACKAGE.parent / place


def _module(place: str) -> ModuleType:
    """Runs the file of a script, or imports a module of the package."""
    if not place.endswith('.py'):
        return importlib.import_module(f'{__package__}.{place}')
    path = script(place)
    spec = importlib.util.spec_from_file_location(f'xception_hub_recipe_{path.stem}', path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def loaded(name: str) -> App:
    """Loads the app of a command, whose help needs no extra."""
    place = RECIPES[name].place
    if name == 'finetune':  # the recipe itself imports all that trains
        from .training.command import command

        return command(lambda settings: _module(place).run(settings))
    return _module(place).app


@contextmanager
def _naming_the_extra(command: str) -> Iterator[None]:
    """Lets the error for a missing package say what to install."""
    try:
        yield
    except ImportError as e:
        if command not in RECIPES or (e.name or '').startswith('xception_hub'):
            raise
        raise XceptionHubError(
            f"{e}. xception-hub {command} needs: pip install 'xception-hub[{RECIPES[command].extra}]'"
        ) from e


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


def tool(called: str) -> App:
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
        if called in (name, COMPLETION):
            command = loaded(name)
            if called == COMPLETION:
                command.help = recipe.help
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
        with exits_with_message(), _naming_the_extra(called):
            if called == 'finetune':  # it begins in `app.meta`; its help is complete only as an app of its own
                sys.argv[0] = f'xception-hub {called}'
                command, words = loaded(called).meta, tokens[1:]
            else:
                command, words = tool(called or next(iter(tokens), '')), tokens
            interrupt.as_usual()
            command(words, exit_on_error=False)
    except CycloptsError:  # has been printed
        sys.exit(USAGE)
    except KeyboardInterrupt:  # before a command could say what is kept
        print('\nStopped.', file=sys.stderr)
        sys.exit(interrupt.INTERRUPTED)
