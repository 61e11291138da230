"""Trains the networks that the paper compares, each from several seeds.

    xception-hub ablations RUNS --dataset DATASET

trains the networks of figures 6, 9 and 10. --experiment spectrum trains networks between regular and depthwise
convolutions, with equal parameters, with and without ReLU. Each run calls finetune.py with the recipe paper-imagenet,
at a learning rate chosen for its network. One JSON file gets all results; the pictures are drawn from it. --scale small
is for two CPU cores and Fashion-MNIST (examples/fashion_mnist.py), gpu for many runs on one GPU, paper for the paper's
networks at 299x299 pixels on all devices that `accelerate config` names. Interrupt it, run the command again: it
continues.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import yaml
from cyclopts import App, Parameter
from cyclopts.validators import Number

import xception_hub  # noqa: F401 (registers the models)

from ..errors import DataError, SettingsError, exits_with_message, in_one_line
from .checks import count_macs, count_parameters
from .experiments import MOST_RATES, NETWORKS, SCALES, TUNING, TUNING_IMAGES, Experiment, ScaleName, settings_of
from .speed import machine

ROOT = Path(__file__).resolve().parents[2]

Positive = Annotated[int, Parameter(validator=Number(gte=1))]
Several = Parameter(consume_multiple=True, negative='')

app = App(help=__doc__, version_flags=[])


class Runs:
    """Runs of finetune.py in one folder. Finished runs are not repeated.

    Attributes:
        folder: The folder, with settings and logs of all runs.
        started: Number of runs that were started.
    """

    def __init__(self, folder: Path, jobs: int, by_accelerate: bool) -> None:
        self.folder = folder
        self.started = 0
        launcher = ['-m', 'accelerate.commands.launch'] if by_accelerate else []
        self.command = [sys.executable, *launcher, '-m', 'xception_hub.paper.train_one', '--config']
        paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
        self.environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
        if not by_accelerate:
            self.environment['OMP_NUM_THREADS'] = str(max(1, len(os.sched_getaffinity(0)) // jobs))
        for part in ('settings', 'logs'):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def run(self, name: str, settings: dict[str, Any]) -> str:
        """Trains from settings; returns the last line of the log if that has failed, else ''."""
        if (self.folder / name / 'metrics.json').is_file() and settings.items() <= self.read(
            name, 'settings.yaml'
        ).items():
            return ''
        file, log = self.folder / 'settings' / f'{name}.yaml', self.folder / 'logs' / f'{name}.txt'
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        self.started += 1
        started = time.monotonic()
        with log.open('w') as out:
            status = subprocess.run(
                [*self.command, file, '--output', self.folder / name],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
            ).returncode
        failed = f'FAILED: {"".join(log.read_text().strip().splitlines()[-1:])}' if status else ''
        outcome = failed or f'top-1 {self.read(name, "history.json")[-1]["top1"]:.4f}'
        print(f'{name:32} {outcome:14} {time.monotonic() - started:6.0f} s', flush=True)
        return failed

    def read(self, name: str, file: str) -> Any:
        """A file of a run that has ended: settings.yaml, metrics.json, or history.json with a row for each epoch."""
        text = (self.folder / name / file).read_text()
        return json.loads(text) if file.endswith('.json') else yaml.safe_load(text)

    def updates(self, name: str) -> int:
        """Updates of the weights in a run."""
        newest = max((self.folder / name / 'checkpoints').glob('00-*.safetensors'))
        return int(newest.stem.partition('-')[2])


@app.default
@exits_with_message()
def train(
    runs: Path,
    /,
    *,
    dataset: str,
    experiment: Experiment = 'figures',
    scale: ScaleName = 'small',
    seeds: Positive = 5,
    variants: Annotated[tuple[str, ...], Several, Parameter(show_default=False)] = (),
    rates: Annotated[tuple[float, ...] | None, Several, Parameter(validator=Number(gt=0))] = None,
    jobs: Positive | None = None,
    epochs: Positive | None = None,
) -> None:
    """Train, collect and draw. A failed run does not stop the others; the command then ends with status 1.

    Args:
        runs: Folder for all runs, their results and the pictures.
        dataset: Dataset, as for `xception-hub finetune`. It needs a validation split.
        experiment: Networks to train: figures (6, 9 and 10 of the paper) or spectrum.
        scale: Size of the experiment: small for two CPU cores, gpu for one GPU, paper for the size of the paper.
        seeds: Number of runs of each network.
        variants: Networks of the experiment to train. By default all.
        rates: Learning rates to try for each network, with another seed, fewer updates and images held out from
            training. By default 0.015, 0.045 and 0.135; with --scale paper the rate of the paper.
        jobs: Number of runs at the same time, each with its share of the cores. By default 2, with --scale gpu 8, with
            --scale paper 1.
        epochs: Epochs of each run. By default 1, with --scale paper those of the recipe.
    """
    unknown = [name for name in variants if name not in NETWORKS[experiment]]
    if unknown:
        choices = ', '.join(NETWORKS[experiment])
        raise SettingsError(f'{unknown[0]!r} is not a network of --experiment {experiment}. It has: {choices}.')
    size, names = SCALES[scale], variants or tuple(NETWORKS[experiment])
    rates_of_all = sorted({*(size.rates if rates is None else rates)})
    all_runs, started = Runs(runs, jobs or size.jobs, size.by_accelerate), time.monotonic()
    settings = partial(settings_of, scale=scale, experiment=experiment, dataset=dataset, epochs=epochs)
    tuning = dict(TUNING, max_train_samples=TUNING_IMAGES[experiment])

    def choose(name: str) -> dict[float, float] | None:
        return tried_rates(all_runs, name, {**settings(name), **tuning}, rates_of_all) if len(rates_of_all) > 1 else {}

    def run(name: str, seed: int) -> str:
        rate = best_of(tried[name]) if tried[name] else next(iter(rates_of_all), None)
        return all_runs.run(f'{name}-{seed}', settings(name, seed=seed, rate=rate))

    with ThreadPoolExecutor(jobs or size.jobs) as pool:
        tried = {name: top1s for name, top1s in zip(names, pool.map(choose, names)) if top1s is not None}
        # seed by seed, so that a run that is stopped has some seeds of all networks
        planned = [(name, seed) for seed in range(seeds) for name in tried]
        ended = [one for one, failed in zip(planned, pool.map(run, *zip(*planned))) if not failed] if planned else []
    if ended:
        result = dict(
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            timed=dict(runs=all_runs.started, minutes=round((time.monotonic() - started) / 60, 1)),
            tuning=tuning,
            **collect(all_runs, ended, tried),
        )
        (runs / f'{experiment}.json').write_text(json.dumps(result, indent=1) + '\n')
        draw(runs / f'{experiment}.json')
    failed = len(names) * seeds - len(ended)
    sys.exit(f'{failed} of {len(names) * seeds} runs have failed; see {runs / "logs"}' if failed else 0)


def tried_rates(runs: Runs, name: str, settings: dict[str, Any], rates: Sequence[float]) -> dict[float, float] | None:
    """Tries learning rates for a network, and further ones while the best is the highest or the lowest.

    Returns:
        Rate -> top-1 on images that were kept aside from training, 0 where it diverges; None if a run fails otherwise.
    """
    tried: dict[float, float] = {}
    while rates:
        for rate in rates:
            run = f'{name}-rate-{rate:g}'
            failed = runs.run(run, {**settings, 'learning_rate': rate})
            if failed and 'has diverged' not in failed:
                return None
            tried[rate] = 0.0 if failed else runs.read(run, 'history.json')[-1]['top1']
        *_, lower, highest = sorted(tried)
        lowest, factor = min(tried), highest / lower
        beyond = {lowest: lowest / factor, highest: highest * factor} if len(tried) < MOST_RATES else {}
        rates = [float(f'{beyond[best]:.3g}')] if (best := best_of(tried)) in beyond else []
    return tried


def best_of(tried: Mapping[float, float]) -> float:
    """The rate with the highest top-1."""
    return max(tried, key=tried.__getitem__)


def collect(runs: Runs, ended: Sequence[tuple[str, int]], tried: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of runs that have ended, with the settings that reproduce them."""
    networks: dict[str, Any] = {}
    for name, seed in ended:
        run = f'{name}-{seed}'
        if name not in networks:
            networks[name] = dict(
                network(runs.read(run, 'settings.yaml'), runs.read(run, 'metrics.json')), tried=tried[name], runs=[]
            )
        kept = ('epoch', 'learning_rate', 'train_loss', 'loss', 'top1', 'images_per_second')
        epochs = [{column: row[column] for column in kept} for row in runs.read(run, 'history.json')]
        networks[name]['runs'].append(dict(seed=seed, epochs=epochs))
    metrics, settings = (runs.read(run, file) for file in ('metrics.json', 'settings.yaml'))
    return dict(
        machine=f'{machine()}, timm {timm.__version__}',
        settings={setting: value for setting, value in settings.items() if setting not in (*OWN, 'output')},
        train_images=metrics['train_images'],
        updates=runs.updates(run),
        judged_on=metrics['num_samples'],
        networks=networks,
    )


OWN = ('model', 'model_args', 'image_size', 'weight_decay', 'learning_rate', 'seed')  # settings in which runs differ


def network(settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network, and its cost for one image."""
    with torch.device('meta'):
        model = timm.create_model(settings['model'], num_classes=metrics['num_classes'], **settings['model_args'])
    return dict(
        {setting: settings[setting] for setting in OWN if setting != 'seed'},
        parameters=count_parameters(model),
        macs=count_macs(model.eval(), settings['image_size'])[''],
    )


@app.command
@exits_with_message()
def draw(result: Path, /, *, folder: Path | None = None) -> None:
    """Draw the pictures of a result again, and compare it with the paper's claims.

    Args:
        result: File figures.json or spectrum.json.
        folder: Folder for the pictures. By default the folder of the file.
    """
    from .intervals import table, verdicts  # import packages that the help does not need
    from .trained import write

    try:
        found = json.loads(result.read_text())
        lines = [*table(found), '', *verdicts(found)]
        written = write(found, folder or result.parent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise DataError(f'{result} is not a result of xception-hub ablations: {in_one_line(e)}') from e
    print('\n'.join(['', *lines, *(f'Written: {path}' for path in written)]))


if __name__ == '__main__':
    app()
