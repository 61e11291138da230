"""The directory of a run: its settings, the findings about its data, and its progress.

settings.yaml      settings of the run; `--config DIR/settings.yaml` uses them again
data.json          classes, images left out, rows of the validation split
images.json        digests of the images that the model was trained on, and of those held out
checkpoints/       checkpoints to continue from, and the best weights

A finished run also has model.safetensors, config.json, README.md, metrics.json, report.html, predictions.csv for the
validation images, and history.json with the figures of each epoch.
"""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from types import FrameType
from typing import Any

import yaml

from ..errors import ResumeError, differences
from ..files import PART_SUFFIX, write_text
from .run_checkpoints import Checkpoints
from .settings import RESUME_MAY_CHANGE, OutputSettings

SETTINGS_FILE, DATA_FILE, HISTORY_FILE, METRICS_FILE = 'settings.yaml', 'data.json', 'history.json', 'metrics.json'
PREDICTIONS_FILE = 'predictions.csv'


class Interrupted(Exception):
    """A signal asked the run to stop, and the run has saved a checkpoint."""


@dataclass
class Progress:
    """Progress of a run. A checkpoint contains it beside the tensors.

    Attributes:
        phase: Number of the current phase in the recipe, from 0.
        epoch: Number of the current epoch in the phase, from 0.
        update: Number of the next update in the epoch, from 0.
        loss_sum: Sum of the losses of all images in the epoch so far.
        images: Number of images in the epoch so far.
        history: Figures of each finished epoch.
        best: Figures of the best epoch, whose weights are kept; None before the first evaluation.
    """

    phase: int = 0
    epoch: int = 0
    update: int = 0
    loss_sum: float = 0.0
    images: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


class Run:
    """A directory that belongs to one run.

    Args:
        output: The directory, which may be empty or not exist yet, and its checkpoints.
        settings: All settings of the run, as YAML can express them.
        processes: Number of training processes.

    Raises:
        ResumeError: The directory contains other files, or a run with other settings or number of processes.
    """

    def __init__(self, output: OutputSettings, settings: Mapping[str, Any], processes: int) -> None:
        self.directory, self.settings, self.processes = output.output, dict(settings), processes
        self.checkpoints = Checkpoints(self.directory / 'checkpoints', output.keep_checkpoints)
        if self.directory.is_dir():
            self._check()
        there = next(
            place for place in (self.directory.absolute(), *self.directory.absolute().parents) if place.exists()
        )
        if not there.is_dir() or not os.access(there, os.W_OK):
            why = 'cannot be written' if there.is_dir() else 'is a file'
            raise ResumeError(f'{self.directory} cannot be made: {there} {why}. Name another --output.')

    def _check(self) -> None:
        file, another = self.directory / SETTINGS_FILE, 'name another directory as the output'
        if not file.is_file():
            if any(self.directory.iterdir()):
                raise ResumeError(f'{self.directory} contains files, but no run: {another}.')
            return
        there = yaml.safe_load(file.read_text(encoding='utf-8'))
        if not isinstance(there, dict):
            raise ResumeError(f'{file} is damaged: {another}.')
        there, own = ({k: v for k, v in one.items() if k not in RESUME_MAY_CHANGE} for one in (there, self.settings))
        before = (self.manifest or {}).get('processes', self.processes)
        steps = there.get('accumulation', 1) * before  # of an update, in all processes
        is_other = before != self.processes and not self.finished
        if is_other and own.get('accumulation', 1) * self.processes == steps:
            own['accumulation'], is_other = there['accumulation'], False  # the same batches in other processes
        if different := differences(there, own):
            way = f'Repeat its command to continue it (--config {file}), or {another}.'
            if self.finished:
                way = (
                    f'It is finished. To train its model further, pass --model local-dir:{self.directory} and another '
                    f'--output.'
                )
            raise ResumeError(f'{self.directory} contains a run with other settings: {"; ".join(different)}. {way}')
        if is_other:
            way = f'Start {before}'
            if steps % self.processes == 0:
                way += f', or pass --accumulation {steps // self.processes} for the same batches in {self.processes}'
            raise ResumeError(
                f'{self.directory} contains a run of {before} processes; {self.processes} would get other batches. '
                f'{way}, or {another}.'
            )

    @property
    def finished(self) -> bool:
        return (self.directory / METRICS_FILE).is_file()

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The content of data.json, with the findings about the data; None before the run starts."""
        file = self.directory / DATA_FILE
        return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else None

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Writes the settings and the manifest into the directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for part in self.directory.rglob(f'*{PART_SUFFIX}'):  # of a run that was killed
            part.unlink(missing_ok=True)
        self.write_text(SETTINGS_FILE, yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True))
        self.write_text(DATA_FILE, json.dumps({**manifest, 'processes': self.processes}))

    def write_text(self, name: str, text: str) -> None:
        """Writes a file completely or not at all.

        Raises:
            ResumeError: The file cannot be written.
        """
        try:
            write_text(self.directory / name, text)
        except OSError as e:
            raise ResumeError(f'{self.directory / name} could not be written: {e}.') from e


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """Notes the first Ctrl-C or SIGTERM, so that the run can save before it stops. A second one stops at once."""
    asked = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
