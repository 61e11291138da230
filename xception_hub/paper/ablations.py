"""The networks of figures 9 and 10 and of the way from Inception to Xception, trained side by side.

    xception-hub ablations RUNS --dataset DATASET

trains each from several seeds by the fine-tuning's recipe paper-imagenet, writes the figures of every epoch to one JSON
file and draws their curves. --scale small is for two CPU cores and Fashion-MNIST (examples/fashion_mnist.py); --scale
paper is the paper's network at 299x299 pixels on all devices that `accelerate config` names, one run after another.
Interrupt it, run the command again: it continues.
"""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import timm
import torch
import yaml
from cyclopts import App, Parameter
from cyclopts.validators import Number
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

import xception_hub

from ..errors import in_one_line

ROOT = Path(__file__).resolve().parents[2]

# Variant -> the arguments that make it. All else is the same for all of them, the seeds included.
VARIANTS: dict[str, dict[str, Any]] = {
    'xception': {},
    'no_residual': dict(residual=False),
    'mid_relu': dict(mid_act_layer='relu'),
    'mid_elu': dict(mid_act_layer='elu'),
    'pointwise_first': dict(order='pointwise_first'),
    'segments_8': dict(segments=8),
    'segments_4': dict(segments=4),
    'segments_1': dict(segments=1),
}
# Claim of the paper -> the variant that is better by it, and the other one; of EQUAL, neither is.
CLAIMS = {
    'figure 9: residual connections help': ('xception', 'no_residual'),
    'figure 10: no activation in between is better than ReLU': ('xception', 'mid_relu'),
    'figure 10: no activation in between is better than ELU': ('xception', 'mid_elu'),
    'figure 10: ReLU is better than ELU': ('mid_relu', 'mid_elu'),
}
EQUAL = {'section 1.2: the order of the two operations is unimportant': ('xception', 'pointwise_first')}
# Picture -> its title, and the networks whose curves are in it.
CURVES = {
    'figure_9.png': ('Figure 9, trained here: residual connections', ('xception', 'no_residual')),
    'figure_10.png': ('Figure 10, trained here: between depthwise and pointwise', ('xception', 'mid_relu', 'mid_elu')),
}
CONTINUUM = ('segments_1', 'segments_4', 'segments_8', 'xception')

# Settings of finetune.py on top of the recipe. At the small scale, the averages and the crops are for a training of
# 1,000 updates on clothes that fill their images; rates, decay and dropout are the paper's.
SCALES: dict[str, dict[str, Any]] = {
    'small': dict(
        image_size=40,
        epochs=8,
        batch_size=32,
        ema_decay=0.99,
        crop_scale=[0.6, 1.0],
        scan=False,
        model_args=dict(width_multiplier=0.1875, min_img_size=40),
    ),
    'paper': dict(image_size=299, scan=False, model_args={}),
}
RESULT = 'ablations.json'

# Colours of Okabe and Ito, which stay apart for the colour-blind.
COLOURS = {'xception': '#0072B2', 'no_residual': '#D55E00', 'mid_relu': '#E69F00', 'mid_elu': '#CC79A7'}
LABELS = {
    'xception': 'Xception',
    'no_residual': 'without residual connections',
    'mid_relu': 'ReLU in between',
    'mid_elu': 'ELU in between',
    'pointwise_first': 'pointwise first',
    'segments_1': '1 segment',
    'segments_4': '4 segments',
    'segments_8': '8 segments',
}

Positive = Annotated[int, Parameter(validator=Number(gte=1))]
Name = Literal[
    'xception', 'no_residual', 'mid_relu', 'mid_elu', 'pointwise_first', 'segments_8', 'segments_4', 'segments_1'
]

app = App(help=__doc__, version_flags=[])


@app.default
def train(
    runs: Path,
    /,
    *,
    dataset: str,
    scale: Literal['small', 'paper'] = 'small',
    seeds: Positive = 3,
    variants: Annotated[tuple[Name, ...], Parameter(consume_multiple=True, negative='')] = get_args(Name),
    jobs: Positive | None = None,
    epochs: Positive | None = None,
) -> None:
    """Train, collect and draw. A failed run does not stop the others; the command then ends with status 1.

    Args:
        runs: Folder for all runs, ablations.json and the pictures.
        dataset: Dataset, as `xception-hub finetune` takes it.
        scale: Size of the experiment: small for two CPU cores, paper for the paper's network and images.
        seeds: Number of runs of each variant.
        variants: Variants to train.
        jobs: Number of runs at the same time, each with its share of the cores. By default 2, at the paper's scale 1.
        epochs: Epochs of each run. By default 8 at the small scale, and the recipe's at the paper's.
    """
    jobs = jobs or {'small': 2, 'paper': 1}[scale]
    launcher = [sys.executable, *({'small': [], 'paper': ['-m', 'accelerate.commands.launch']}[scale])]
    environment = dict(os.environ)
    environment['PYTHONPATH'] = os.pathsep.join([str(ROOT), *filter(None, [environment.get('PYTHONPATH')])])
    if scale == 'small':
        environment['OMP_NUM_THREADS'] = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    for folder in ('settings', 'logs'):
        (runs / folder).mkdir(parents=True, exist_ok=True)

    def run(planned: tuple[str, int]) -> str | None:
        """Trains a variant from a seed; the last line of its log if it failed."""
        variant, seed = planned
        name = f'{variant}-{seed}'
        settings = settings_of(scale, variant, seed, dataset, epochs)
        file, log = runs / 'settings' / f'{name}.yaml', runs / 'logs' / f'{name}.txt'
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        started = time.monotonic()
        with log.open('w') as out:
            status = subprocess.run(
                [*launcher, '-m', 'xception_hub', 'finetune', '--config', file, '--output', runs / name],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            ).returncode
        said = log.read_text().strip().splitlines()
        final = f'top-1 {history(runs / name)[-1]["top1"]:.4f}' if status == 0 else f'FAILED: {"".join(said[-1:])}'
        print(f'{name:20} {final:14} {time.monotonic() - started:6.0f} s', flush=True)
        return None if status == 0 else final

    # seed by seed, so that what there is after a stop is complete for some; the longest first
    planned = [(variant, seed) for seed in range(seeds) for variant in sorted(variants, key=list(VARIANTS).index)[::-1]]
    started = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        failed = [failure for failure in pool.map(run, planned) if failure]
    if len(failed) < len(planned):
        result = collect(runs, scale, dataset, planned, epochs, minutes=(time.monotonic() - started) / 60)
        (runs / RESULT).write_text(json.dumps(result, indent=1) + '\n')
        draw(runs / RESULT)
    sys.exit(f'{len(failed)} of {len(planned)} runs have failed; see {runs / "logs"}' if failed else 0)


def settings_of(scale: str, variant: str, seed: int, dataset: str, epochs: int | None) -> dict[str, Any]:
    """Settings of the fine-tuning for one run."""
    settings = dict(SCALES[scale], dataset=dataset, recipe='paper-imagenet', model='xception_paper', seed=seed)
    settings['model_args'] = dict(SCALES[scale]['model_args'], **VARIANTS[variant])
    return dict(settings, epochs=epochs) if epochs else settings


def history(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / 'history.json').read_text())


def collect(
    runs: Path, scale: str, dataset: str, planned: Sequence[tuple[str, int]], epochs: int | None, minutes: float
) -> dict[str, Any]:
    """All figures of all runs that have ended, with what is needed to have them again."""
    variants: dict[str, Any] = {}
    for variant, seed in planned:
        folder = runs / f'{variant}-{seed}'
        if not (folder / 'history.json').is_file():
            continue
        metrics = json.loads((folder / 'metrics.json').read_text())
        args = dict(SCALES[scale]['model_args'], **VARIANTS[variant])
        model = xception_hub.Xception(num_classes=metrics['num_classes'], **args, device='meta')
        entry = variants.setdefault(
            variant, dict(arguments=VARIANTS[variant], parameters=sum(p.numel() for p in model.parameters()), runs=[])
        )
        entry['runs'].append(
            dict(
                seed=seed,
                epochs=[
                    {name: row[name] for name in ('epoch', 'learning_rate', 'train_loss', 'loss', 'top1')}
                    for row in history(folder)
                ],
            )
        )
    return dict(
        command=shlex.join(['python', 'benchmarks/ablations.py', *sys.argv[1:]]),
        minutes=round(minutes, 1),
        machine=f'{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, timm {timm.__version__}',
        settings=settings_of(scale, 'xception', 0, dataset, epochs),
        images_judged_on=metrics['num_samples'],
        variants=variants,
    )


@app.command
def draw(result: Path, /, *, folder: Path | None = None) -> None:
    """Draw the curves of a result again, and print what it says of the paper's claims.

    Args:
        result: A file ablations.json.
        folder: Folder for the pictures. By default the one that the file is in.
    """
    try:
        found = json.loads(result.read_text())
        found['variants']
    except (OSError, ValueError, KeyError, TypeError) as e:
        sys.exit(f'error: {result} is no result of xception-hub ablations: {in_one_line(e)}')
    folder = folder or result.parent
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        name: curves(found, variants, title)
        for name, (title, variants) in CURVES.items()
        if {*variants} <= {*found['variants']}
    }
    if len({*CONTINUUM} & {*found['variants']}) > 1:
        pictures['continuum_trained.png'] = continuum(found)
    written = [folder / name for name in pictures]
    for path, figure in zip(written, pictures.values()):
        figure.savefig(path, dpi=150)
    print('\n'.join(['', *verdicts(found), *(f'Written: {path}' for path in written)]))


def last(found: Mapping[str, Any], variant: str) -> dict[int, float]:
    """Seed -> top-1 of the last epoch."""
    return {run['seed']: run['epochs'][-1]['top1'] for run in found['variants'][variant]['runs']}


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """What the runs say of each claim: a seed's networks see the same images in the same order."""
    lines = [f'{"variant":20} {"parameters":>12} {"top-1":>8}   of single seeds']
    for variant, entry in found['variants'].items():
        values = list(last(found, variant).values())
        lines.append(
            f'{variant:20} {entry["parameters"]:12,} {statistics.mean(values):8.4f}   '
            f'{" ".join(f"{value:.4f}" for value in values)}'
        )
    lines.append('')
    for claim, (better, worse) in {**CLAIMS, **EQUAL}.items():
        if not {better, worse} <= set(found['variants']):
            continue
        first, second = last(found, better), last(found, worse)
        differences = [first[seed] - second[seed] for seed in first if seed in second]
        mean = statistics.mean(differences)
        above = sum(difference > 0 for difference in differences)
        if claim in EQUAL:
            verdict = f'{better} is above in {above} of {len(differences)} seeds'
        elif min(differences) > 0:
            verdict = f'the same in all {len(differences)} seeds'
        elif max(differences) < 0:
            verdict = f'THE OPPOSITE in all {len(differences)} seeds'
        else:
            verdict = f'not decided: the same in {above} of {len(differences)} seeds'
        low, high = min(differences), max(differences)
        lines.append(f'{claim}: {verdict} ({100 * mean:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f})')
    return lines


def new_figure(columns: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(4.4 * columns, 3.6), layout='constrained')
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.spines[['top', 'right']].set_visible(False)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure, axes


def curve(ax: Axes, runs: Sequence[Mapping[str, Any]], name: str, label: str, colour: Any) -> None:
    """Mean over the seeds, and from the lowest to the highest of them."""
    epochs = [row['epoch'] for row in runs[0]['epochs']]
    values = list(zip(*([row[name] for row in run['epochs']] for run in runs)))  # an epoch's, of all seeds
    ax.plot(epochs, [statistics.mean(of) for of in values], color=colour, label=label, linewidth=1.8)
    ax.fill_between(epochs, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.2, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel('epoch')


def curves(found: Mapping[str, Any], variants: Sequence[str], title: str) -> Figure:
    """Accuracy and training loss by epoch."""
    figure, (accuracy, loss) = new_figure(2)
    figure.suptitle(title, fontsize=11)
    for variant in variants:
        runs = found['variants'][variant]['runs']
        curve(accuracy, runs, 'top1', LABELS[variant], COLOURS[variant])
        curve(loss, runs, 'train_loss', LABELS[variant], COLOURS[variant])
    loss.yaxis.set_major_formatter('{x:g}')
    accuracy.set_title(f'top-1 of {found["images_judged_on"]:,} images not trained on', fontsize=9)
    loss.set_title('cross-entropy while training', fontsize=9)
    accuracy.legend(fontsize=8, frameon=False, loc='best')
    return figure


def continuum(found: Mapping[str, Any]) -> Figure:
    """Accuracy by the number of segments: after each epoch, and in the end beside the number of parameters."""
    figure, (accuracy, end) = new_figure(2)
    figure.suptitle('From regular to depthwise separable convolutions, by the number of segments', fontsize=11)
    present = [variant for variant in CONTINUUM if variant in found['variants']]
    for variant in present:
        position = CONTINUUM.index(variant)
        colour = colormaps['viridis'](position / len(CONTINUUM))
        label = LABELS[variant] if variant != 'xception' else 'one per channel'
        curve(accuracy, found['variants'][variant]['runs'], 'top1', label, colour)
        values = list(last(found, variant).values())
        end.plot([position] * len(values), values, 'o', color=colour, markersize=5, alpha=0.8)
        end.plot([position - 0.2, position + 0.2], [statistics.mean(values)] * 2, color=colour, linewidth=2)
        end.annotate(
            f'{found["variants"][variant]["parameters"] / 1e6:.1f} M',
            (position, max(values)),
            (0, 7),
            textcoords='offset points',
            ha='center',
            fontsize=8,
        )
    end.xaxis.set_major_locator(FixedLocator(range(len(CONTINUUM))))
    end.xaxis.set_minor_locator(NullLocator())
    end.set_xticklabels(['1', '4', '8', 'one per\nchannel'])
    end.margins(x=0.12, y=0.2)
    end.set_xlabel('segments')
    accuracy.set_title(f'top-1 of {found["images_judged_on"]:,} images not trained on', fontsize=9)
    end.set_title('after the last epoch: each seed, mean, parameters', fontsize=9)
    accuracy.legend(fontsize=8, frameon=False, loc='lower right')
    return figure


if __name__ == '__main__':
    app()
