"""What can go wrong. Each message names the thing, the value, the choices and the remedy."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MAX_NAME, MAX_LINE, MAX_LINES = 200, 10_000, 500  # characters, characters, lines
MAX_MESSAGE = 2000  # characters of an error about a Keras file
HARMLESS = '\xa0\u3000\u200c\u200d'  # spaces and joiners of scripts, which Python does not count as printable


def printable(text: object, most: int = MAX_NAME) -> str:
    """Text of others as one line for a terminal, a card or a page.

    Line breaks, controls of the terminal and of the direction of writing, and what is invisible become escapes such as
    \\x1b. Text of more than `most` characters is cut off.
    """
    line = str(text)
    line = line if len(line) <= most else f'{line[:most]} ...'
    return ''.join(c if c.isprintable() or c in HARMLESS else ascii(c)[1:-1] for c in line)


def printable_lines(text: object) -> str:
    """Text with parts of others, each line as in `printable`."""
    lines = str(text).split('\n')
    more = [f'... and {len(lines) - MAX_LINES} lines more'] if len(lines) > MAX_LINES else []
    return '\n'.join([printable(line, MAX_LINE) for line in lines[:MAX_LINES]] + more)


class XceptionHubError(Exception):
    """Any failure that this project explains: a command prints the message and ends with status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(printable_lines(message))


class CheckpointError(XceptionHubError, ValueError):
    """A file is not a checkpoint of this network."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint does not hold what its author put there."""


class WeightsError(XceptionHubError, RuntimeError):
    """No source has pretrained weights that fit the model."""


class DirectoryError(XceptionHubError, ValueError):
    """A model directory cannot be read or written."""


class CardError(DirectoryError):
    """A model directory lacks what its card is made of."""


class PublishError(XceptionHubError, RuntimeError):
    """A model directory was not published."""


class KerasFileError(XceptionHubError, ValueError):
    """A Keras file is damaged, unsafe or of a kind that cannot be converted."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, MAX_MESSAGE))


class ReleaseError(XceptionHubError, ValueError):
    """The weights that Keras publishes could not be downloaded."""


class ParityError(XceptionHubError, ValueError):
    """Two networks do not compute the same, or cannot be compared."""


class ToKerasError(XceptionHubError, ValueError):
    """A model directory cannot become a Keras model."""


class DataError(XceptionHubError, ValueError):
    """A dataset cannot be trained on."""


class ImageError(XceptionHubError, ValueError):
    """An image file cannot be used."""


class ModelError(XceptionHubError, ValueError):
    """A timm model cannot be used."""


class SettingsError(XceptionHubError, ValueError):
    """Settings are impossible, or impossible together."""


class ResumeError(XceptionHubError, RuntimeError):
    """A checkpoint of a run cannot be written or resumed."""


class OptimizeError(XceptionHubError, ValueError):
    """A model cannot be made faster without another function."""


class ExportError(XceptionHubError, RuntimeError):
    """A model was not exported."""


class Diverged(XceptionHubError, RuntimeError):
    """The loss, or a weight, is not a finite number."""


def in_one_line(error: BaseException) -> str:
    """An error of others, with its class, in one line."""
    return printable(' '.join(f'{type(error).__name__}: {error}'.split()), MAX_MESSAGE)


@contextmanager
def exits_with_message(*others: type[Exception]) -> Iterator[None]:
    """Ends the process with `error: ...` and status 1 at an XceptionHubError; also the decorator of each command.

    Warnings are lines `warning: ...` meanwhile.

    Args:
        *others: Further errors whose message is for the user.
    """
    explained: tuple[type[Exception], ...] = (XceptionHubError, *others)
    before = warnings.showwarning
    warnings.showwarning = lambda message, *_: print(f'warning: {printable_lines(message)}', file=sys.stderr)
    try:
        yield
    except explained as e:
        sys.exit(f'error: {printable_lines(e)}')
    finally:
        warnings.showwarning = before


def listed(names: Iterable[Any], most: int = 6) -> str:
    """Names with commas between them; the first ones of many, and the number of the others."""
    names = [*names]
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return (', '.join(map(printable, names[:most])) + more) or 'none'


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of an earlier run and those of this one, a text for each name."""
    return [
        f'{name} is {there.get(name)!r} there and {here.get(name)!r} here'
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
