"""The command `python -m xception_hub.paper`."""

import importlib.util
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from cyclopts import App, Parameter

from .. import __version__
from ..errors import exits_with_message
from . import checks, claims, quoted, speed

app = App(
    name='python -m xception_hub.paper',
    version=__version__,
    help=f'Compares statements of the paper ({quoted.PAPER}) with counts and measurements of this network.',
)


def title(text: str) -> None:
    print(f'\n{text}\n{"-" * len(text)}')


def print_parameters(counts: checks.Counts) -> None:
    title('Table 3: parameters, counted')
    print(f'{"":20}{"paper":>14}{"here":>14}{"difference":>14}')
    for name, found in counts.parameters.items():
        print(f'{name:20}{quoted.PARAMETERS[name]:14,}{found:14,}{found - quoted.PARAMETERS[name]:14,}')
    print(
        '\nThe paper does not say which Inception V3 it counts. Its number is exactly that of\n'
        f'{checks.INCEPTION_SOURCE}:\n'
    )
    first, *others = counts.inception
    print(f'{first.change:68}{first.parameters:28,}')
    before = first.parameters
    for step in others:
        print(f'{step.change:68}{step.parameters - before:+14,}{step.parameters:14,}')
        before = step.parameters
    print(
        '\nThese are trainable parameters. With moving statistics, Keras 3 counts '
        f'{counts.keras_total["Xception"]:,} and\n{counts.keras_total["Inception V3"]:,} '
        '(its Inception V3 has none of the three changes, and no gamma).'
    )


def print_modules(counts: checks.Counts) -> None:
    title(f'Section 3 and figure 5: layers and modules, counted at {checks.IMAGE_SIZE}x{checks.IMAGE_SIZE} pixels')
    print(
        f'{"":3} {"module":15}{"layers":>7}{"residual":>10}{"map":>10}{"channels":>10}{"parameters":>14}'
        f'{"million MACs":>14}{"share":>8}'
    )
    total = counts.macs['Xception']
    for number, module in enumerate(counts.modules, start=1):
        is_head = module.name == checks.HEAD
        size = f'{module.size}x{module.size}' if module.size else '-'
        print(
            f'{"" if is_head else number:>3} {module.name:15}{module.layers:7}{"yes" if module.residual else "-":>10}'
            f'{size:>10}{module.channels:10}{module.parameters:14,}{module.macs / 1e6:14,.1f}'
            f'{module.macs / total:8.1%}'
        )
    print(
        f'{"":3} {"Xception":15}{sum(module.layers for module in counts.modules):7}{"":30}'
        f'{counts.parameters["Xception"]:14,}{total / 1e6:14,.1f}{1:8.1%}'
    )
    inception = counts.macs['Inception V3']
    print(
        f'{"":3} {checks.MODELS["Inception V3"] + " of timm":52}{counts.inception[0].parameters:14,}'
        f'{inception / 1e6:14,.1f}{inception / total:8.1%}'
    )
    print(
        '\nA depthwise separable convolution is one layer; the 1x1 convolutions of residual connections are not\n'
        'counted as layers. MACs: multiply-adds of convolutions and classifier for one image.'
    )


def print_quoted() -> None:
    title('Tables 1 and 2, figures 9 and 10: QUOTED from the paper, not measured here')
    print(f'{"":20}{"ImageNet top-1":>16}{"top-5":>8}{"JFT MAP@100":>20}{"with FC layers":>18}')
    for name, (top1, top5) in quoted.IMAGENET.items():
        jft = quoted.JFT.get(name)
        print(f'{name:20}{top1:16.3f}{top5:8.3f}' + (f'{jft[0]:20.2f}{jft[1]:18.2f}' if jft else ''))
    print()
    for figure, verdict in quoted.VERDICTS.items():
        print(f'{figure}: {verdict}')


def print_claims() -> None:
    title('What the paper states with a number or as a comparison, and what becomes of it here')
    for sentence in claims.SENTENCES:
        first, *others = textwrap.wrap(sentence.text, 62)
        print(f'{sentence.place:16}{first:64}{sentence.how}', *(f'{"":16}{line}' for line in others), sep='\n')
    print()
    for how, meaning in claims.HOW.items():
        print(f'{how}: {meaning}')


def print_speed(measured: speed.Speed) -> None:
    w = measured.workload
    title('Table 3: training steps per second, measured')
    print(f'{"":20}{"paper":>14}{"here":>14}')
    for name, found in measured.steps_per_second.items():
        print(f'{name:20}{quoted.STEPS_PER_SECOND[name]:14}{found:14.3g}')
    paper = speed.ratio(quoted.STEPS_PER_SECOND)
    low, high = measured.ratio_range
    print(f'{"ratio":20}{paper:14.2f}{measured.ratio:14.2f}   ({low:.2f} to {high:.2f} in single repeats)')
    print(
        f'\npaper: {quoted.STEPS_ON}\n'
        f'here:  {measured.machine}\n'
        f'       batch {w.batch_size}, {w.image_size}x{w.image_size} pixels, float32, channels last; '
        f'medians of {counted(w.repeats, "repeat")} of {counted(w.steps, "step")}, in turn'
    )


def print_checks(results: list[checks.Claim]) -> None:
    title('Checks')
    for result in results:
        verdict = 'holds' if result.holds else 'FAILS'
        print(
            f'{verdict}  {result.claim}: {shown(result.expected)}'
            + ('' if result.expected == result.found else f', found {shown(result.found)}')
        )


def counted(number: int, noun: str) -> str:
    return f'{number} {noun}' + ('' if number == 1 else 's')


def shown(value: object) -> str:
    """A value as text: a number with commas, a list on one line."""
    if isinstance(value, list):
        return ' '.join(map(str, value)) or 'none'
    return f'{value:,}' if isinstance(value, int | float) else str(value)


def as_json(counts: checks.Counts, results: list[checks.Claim], measured: speed.Speed | None) -> dict[str, Any]:
    """Everything that the command prints."""
    speeds = measured._asdict() if measured else None
    if speeds:
        speeds['settings'] = asdict(speeds.pop('workload'))
    return {
        'versions': {'xception_hub': __version__, 'timm': timm.__version__, 'torch': torch.__version__},
        'parameters': counts.parameters,
        'parameters, Keras 3, with moving statistics': counts.keras_total,
        'steps to the Inception V3 of the paper': [step._asdict() for step in counts.inception],
        'modules': [module._asdict() for module in counts.modules],
        'macs': counts.macs,
        'quoted': quoted.as_json(),
        'sentences': [sentence._asdict() for sentence in claims.SENTENCES],
        'speed': speeds,
        'checks': [result._asdict() for result in results],
    }


def check_outputs(json_file: Path | None, figures: Path | None, page: Path | None) -> None:
    """Raises a ValueError if an output cannot be written, before any work is done."""
    for argument, file in (('json', json_file), ('page', page)):
        name = f'{argument}={str(file)!r} is not possible'
        if file and file.is_dir():
            raise ValueError(f'{name}: it is a folder, and must be a file.')
        if file and not file.parent.is_dir():
            raise ValueError(f'{name}: there must be a folder {str(file.parent)!r}.')
    if figures and figures.exists() and not figures.is_dir():
        raise ValueError(
            f'figures={str(figures)!r} is not possible: it is a file, and must be a folder, or the name of a new one.'
        )
    for argument, drawn in (('figures', figures), ('page', page)):
        if drawn and not importlib.util.find_spec('matplotlib'):
            raise ValueError(f'{argument}={str(drawn)!r} is not possible without matplotlib: pip install matplotlib')


@app.default
def main(
    *,
    speed_: Annotated[bool, Parameter('--speed')] = True,
    image_size: int = checks.IMAGE_SIZE,
    batch_size: int | None = None,
    repeats: int = 5,
    steps: int | None = None,
    json_: Annotated[Path | None, Parameter('--json')] = None,
    figures: Path | None = None,
    page: Path | None = None,
) -> None:
    """Exits with status 0 if all checks hold, and with 1 if a check fails or an argument is not possible.

    Speed is measured on a GPU if torch finds one. It is not a check.

    Args:
        speed_: Measure training steps per second. With --no-speed, the command only takes a few seconds.
        image_size: Height and width of the images in the speed measurement in pixels, at least 75.
        batch_size: Number of images in a training step, at least 2. By default 8, or 32 on a GPU.
        repeats: Number of timed repeats, after one warm-up. The median is printed.
        steps: Number of training steps in a repeat. By default 1, or 10 on a GPU.
        json_: JSON file for all results.
        figures: Folder for the paper's figures 1 to 5, drawn from the networks in code. Needs matplotlib.
        page: Interactive HTML file: figures 1 to 5 for each setting, with parameters and cost. Needs matplotlib.
    """
    with exits_with_message(ValueError):
        workload = speed.workload(image_size, batch_size, repeats, steps)
        check_outputs(json_, figures, page)

    print(f'Xception, {quoted.PAPER}: what it states, and what is counted and measured here')
    counts = checks.count()
    results = checks.check(counts)
    print_parameters(counts)
    print_modules(counts)
    print_quoted()
    print_claims()
    measured = None
    if speed_:
        print('\nmeasuring training steps; without: --no-speed', file=sys.stderr)
        measured = speed.measure(workload)
        print_speed(measured)
    print_checks(results)
    if json_:
        json_.write_text(json.dumps(as_json(counts, results, measured), indent=2) + '\n')
        print(f'\nwritten: {json_}')
    if figures:
        from .drawing import draw_all  # needs matplotlib, which is optional

        print('', *(f'written: {path}' for path in draw_all(figures)), sep='\n')
    if page:
        from .page import write_page

        write_page(page)
        print(f'\nwritten: {page}')
    failed = [result.claim for result in results if not result.holds]
    if failed:
        verb = 'fails' if len(failed) == 1 else 'fail'
        sys.exit(f'{len(failed)} of {len(results)} checks {verb}: {"; ".join(failed)}')
    print(f'\nAll {len(results)} checks hold.')


if __name__ == '__main__':
    app()
