"""The command `python -m xception_hub.paper`."""

import importlib.util
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from cyclopts import App, Parameter
from cyclopts.validators import Number

from .. import __version__
from ..errors import exits_with_message
from . import checks, claims, quoted, speed

COLUMNS = 100  # of a terminal
INCEPTION_SOURCE = (
    "the author's version of 9 August 2016 (github.com/fchollet/deep-learning-models, inception_v3.py, commit "
    'cbf97b0), which differs from the published network'
)

app = App(
    name='python -m xception_hub.paper',
    version=__version__,
    help=f'Compares statements of the paper ({quoted.PAPER}) with counts and measurements of this network.',
)


def title(text: str) -> None:
    print(f'\n{text}\n{"-" * len(text)}')


def wrapped(text: str, indent: int = 0) -> None:
    print(textwrap.fill(text, COLUMNS, subsequent_indent=' ' * indent))


def table(head: str, rows: Sequence[Sequence[object]]) -> None:
    """Prints rows below a head with | between its columns. All columns but the first end at the right."""
    lines = [head.split('|'), *([shown(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *others in lines:
        print('  '.join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]).rstrip())


def shown(value: object) -> str:
    """A value as text: a number with commas, yes or nothing for a truth value, a list on one line."""
    if isinstance(value, list):
        return ' '.join(map(str, value)) or 'none'
    if isinstance(value, bool):
        return 'yes' if value else ''
    return f'{value:,}' if isinstance(value, int | float) else str(value)


def print_counts(counts: checks.Counts) -> None:
    title('Table 3: parameters, counted')
    paper = quoted.PARAMETERS
    rows = [(name, paper[name], found, found - paper[name]) for name, found in counts.parameters.items()]
    table('|paper|counted|difference', rows)
    print()
    wrapped(f'The paper does not name the version of its Inception V3. The number is that of {INCEPTION_SOURCE}:')
    print()
    table('changes to the network|parameters', counts.inception)
    print()
    wrapped(
        'These are trainable parameters. Keras 3 also counts the moving statistics: '
        f'{counts.keras_total["Xception"]:,} and {counts.keras_total["Inception V3"]:,} (its Inception V3 has none of '
        'the three changes, and no gamma).'
    )

    title(f'Section 3 and figure 5: layers and modules, counted at {checks.IMAGE_SIZE}x{checks.IMAGE_SIZE} pixels')
    layers = sum(module.layers for module in counts.modules), sum(module.separable for module in counts.modules)
    total = ('Xception', *layers, '', '', '', counts.parameters['Xception'], counts.macs['Xception'])
    other = ("timm's Inception V3", *[''] * 5, counts.inception[0].parameters, counts.macs['Inception V3'])
    table('module|layers|separable|residual|map|channels|parameters|multiply-adds', [*counts.modules, total, other])
    print()
    wrapped(
        'A depthwise separable convolution is one layer; the 1x1 convolutions of residual connections are not counted '
        'as layers. The multiply-adds are those of convolutions and classifier for one image.'
    )


def print_claims() -> None:
    title('Statements of the paper with a number or a comparison, and their results')
    for sentence in claims.SENTENCES:
        wrapped(f'{sentence.place:16}{sentence.text}: {sentence.how}', 16)
    print()
    for how, meaning in claims.HOW.items():
        print(f'{how}: {meaning}')


def print_speed(measured: dict[str, Any]) -> None:
    title('Table 3: training steps per second, measured')
    paper, found, size = quoted.STEPS_PER_SECOND, measured['steps_per_second'], measured['settings']
    rows: list[Any] = [(name, paper[name], f'{found[name]:.3g}') for name in paper]
    table('|paper|measured', [*rows, ('ratio', f'{speed.ratio(paper):.2f}', f'{measured["ratio"]:.2f}')])
    print(f'\npaper: {quoted.STEPS_ON}')
    pixels, (low, high) = f'{size["image_size"]}x{size["image_size"]} pixels', measured['ratio_range']
    wrapped(
        f'this machine: {measured["machine"]}; batch {size["batch_size"]}, {pixels}, float32, channels last; medians '
        f'of {size["repeats"]} repeats of {size["steps"]} steps, in turn; ratios of repeats {low:.2f} to {high:.2f}'
    )


def print_checks(results: list[checks.Claim]) -> None:
    title('Checks')
    for claim, expected, found, holds in results:
        other = '' if expected == found else f', found {shown(found)}'
        print(f'{"holds" if holds else "FAILS"}  {claim}: {shown(expected)}{other}')


def check_outputs(json_file: Path | None, figures: Path | None, page: Path | None) -> None:
    """Raises a ValueError if an output cannot be written, before any work is done."""
    for option, file in (('--json', json_file), ('--page', page)):
        if file and (file.is_dir() or not file.parent.is_dir()):
            raise ValueError(f'{option} {file} must be a file in an existing folder.')
    if figures and figures.exists() and not figures.is_dir():
        raise ValueError(f'--figures {figures} is a file. Name a folder.')
    if (figures or page) and not importlib.util.find_spec('matplotlib'):
        raise ValueError('--figures and --page need matplotlib: pip install matplotlib')


@app.default
@exits_with_message(ValueError)
def main(
    *,
    speed_: Annotated[bool, Parameter('--speed')] = True,
    image_size: Annotated[int, Parameter(validator=Number(gte=speed.MIN_IMAGE_SIZE))] = checks.IMAGE_SIZE,
    batch_size: Annotated[int | None, Parameter(validator=Number(gte=2))] = None,
    json_: Annotated[Path | None, Parameter('--json')] = None,
    figures: Path | None = None,
    page: Path | None = None,
) -> None:
    """Exits with status 0 if all checks hold, and with 1 if a check fails.

    Speed is measured on a GPU if torch finds one. It is not a check.

    Args:
        speed_: Measure training steps per second. With --no-speed, the command only takes a few seconds.
        image_size: Height and width of the images in the speed measurement in pixels, at least 75 for Inception V3.
        batch_size: Number of images in a training step, at least 2. By default 8, or 32 on a GPU.
        json_: JSON file for all results.
        figures: Folder for the paper's figures 1 to 5, drawn from the networks in code. Needs matplotlib.
        page: Interactive HTML file: figures 1 to 5 for each setting, with parameters and cost. Needs matplotlib.
    """
    check_outputs(json_, figures, page)
    print(f'The statements of {quoted.PAPER} (Xception), compared with counts and measurements of this network')
    counts = checks.count()
    results, measured = checks.check(counts), None
    print_counts(counts)
    print_claims()
    if speed_:
        print('\nmeasuring training steps; without: --no-speed', file=sys.stderr)
        measured = speed.measure(image_size, batch_size)
        print_speed(measured)
    print_checks(results)
    written = []
    if json_:
        found = dict(
            versions=dict(xception_hub=__version__, timm=timm.__version__, torch=torch.__version__),
            **counts._asdict()
            | {name: [row._asdict() for row in getattr(counts, name)] for name in ('inception', 'modules')},
            sentences=[sentence._asdict() for sentence in claims.SENTENCES],
            speed=measured,
            checks=[result._asdict() for result in results],
        )
        json_.write_text(json.dumps(found, indent=2) + '\n')
        written.append(json_)
    if figures:
        from .drawing import draw_all  # needs matplotlib, which is optional

        written += draw_all(figures)
    if page:
        from .page import write_page

        write_page(page)
        written.append(page)
    print(*(f'\nwritten: {path}' for path in written), sep='')
    if failed := [result.claim for result in results if not result.holds]:
        sys.exit(f'{len(failed)} of {len(results)} checks fail: {"; ".join(failed)}')
    print(f'\nAll {len(results)} checks hold.')


if __name__ == '__main__':
    app()
