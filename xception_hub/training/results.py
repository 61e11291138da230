"""The results of a run: a row of a table after each epoch; model, figures and report at the end."""

import json
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from .. import __version__
from ..data.labelled import Cell, Split
from ..directory import card, upload
from ..directory.write import CONFIG_FILE, read_json
from ..inference import prediction_tables
from ..inference.attribution import explain, in_unit_range
from ..inference.overlay import overlay, seen
from ..models import classifier
from ..models.build import evaluating
from ..models.matching import outputs_of
from ..timing import device_model
from .metrics import THRESHOLD, Predictions, summary
from .phase import Task
from .processes import Machine
from .report import EPOCH_FIGURES, MISTAKES, THUMBNAIL, render
from .run_directory import HISTORY_FILE, METRICS_FILE, PREDICTIONS_FILE, Progress, Run
from .settings import Settings

# Column of the table of epochs -> its heading, and how its numbers are written.
COLUMNS = {'phase': ('Phase', ''), 'epoch': ('Epoch', ''), **EPOCH_FIGURES, 'images_per_second': ('Images/s', '.1f')}


def row(figures: Mapping[str, Any], best: bool, heading: bool) -> str:
    """The figures of an epoch as a row of a table, with a row of headings above it on request."""
    columns = {name: column for name, column in COLUMNS.items() if name in figures}
    cells = [_cell(figures[name], spec).rjust(max(len(title), 10)) for name, (title, spec) in columns.items()]
    line = ' '.join(cells) + ('  best' if best else '')
    headings = ' '.join(title.rjust(10) for title, _ in columns.values())
    return f'{headings}\n{line}' if heading else line


def _cell(value: Any, spec: str = '.4f') -> str:
    return format(value, spec) if isinstance(value, float) else '' if value is None else str(value)


def table(figures: Mapping[str, Any]) -> str:
    """One line for each figure: its name and its value."""
    return '\n'.join(f'{name:24} {_cell(value)}' for name, value in figures.items())


def finish(task: Task, settings: Settings, predictions: Predictions, progress: Progress) -> None:
    """Writes the model, its figures and the report into the run's directory. Only the main process writes.

    Args:
        task: The finished task.
        settings: The settings of the whole run.
        predictions: Predictions of the final network on the validation split.
        progress: Progress at the end of the run, with the figures of all epochs.
    """
    if not task.machine.is_main_process:
        return
    manifest, run, class_names, evaluation = task.manifest, task.run, task.data.class_names, settings.output.eval_only
    validation, s, part = task.data.validation, settings.data, ''
    if 'validation_rows' in manifest:
        part = f'fold {s.fold} of {s.folds} of ' if s.folds else f'{s.validation_share:.0%} of '
    figures: dict[str, Any] = dict(
        summary(predictions, len(class_names)),
        bad_images=len(manifest['bad_images']),
        num_classes=len(class_names),
        restricted=settings.output.restrict_classes,
        model=settings.model.model,
        dataset=s.dataset,
        split=part + validation.name,
    )
    if progress.best:
        figures.update({name: progress.best[name] for name in ('phase', 'epoch')})
    if not evaluation:
        figures['train_images'] = len(task.data.train)
        base = classifier.hub_id(task.model) if settings.model.pretrained else None
        several, grey_maximum = task.data.multi_label, validation.grey_maximum
        classifier.save(run.directory, task.model, task.transforms.config, class_names, several, base, grey_maximum)
    write_predictions(run.directory / PREDICTIONS_FILE, task, predictions)
    run.write_text('report.html', report(task, settings, predictions, progress, figures))
    run.write_text(HISTORY_FILE, json.dumps(progress.history, indent=2))
    run.write_text(METRICS_FILE, json.dumps(figures, indent=2))  # marks the run as finished
    if not evaluation and is_xception(run.directory):
        run.write_text('README.md', card.render(run.directory))
    task.machine.print(f'\n{table(figures)}\nWritten: {run.directory}, with report.html and {PREDICTIONS_FILE}')
    if settings.output.push:
        push(settings.output.push, run.directory)


def write_predictions(path: Path, task: Task, predictions: Predictions) -> None:
    """Writes a row for each image of the validation split, with those that cannot be used."""
    split, manifest, class_names = task.data.validation, task.manifest, np.array(task.data.class_names, object)
    names, several = split.names(), predictions.multi_label
    with prediction_tables.table(path, ('file', 'target', 'label', 'probability', 'top', 'error')) as write:
        for index, classes, values, label in zip(
            predictions.indices, predictions.classes, predictions.probabilities, predictions.labels
        ):
            likeliest = [*zip(class_names[classes], (values[classes] if several else values).tolist())]
            found = [*class_names[values > THRESHOLD]] if several else None
            target = prediction_tables.as_json([*class_names[label > 0]]) if several else class_names[label]
            write(dict(file=names[index], target=target, **prediction_tables.row(likeliest, found)))
        for image in manifest['bad_images']:
            if image['split'] == split.name and 'validation_rows' not in manifest:
                write(dict(file=image['name'], error=image['reason']))


def show_finished(run: Run, push_to: str | None, machine: Machine) -> None:
    """Prints the figures of a finished run, and publishes it on request."""
    machine.print(f'{run.directory} is finished:\n{table(read_json(run.directory / METRICS_FILE))}')
    if push_to and machine.is_main_process:
        push(push_to, run.directory)


def is_xception(directory: Path) -> bool:
    """Whether a model directory holds a network that this project writes model cards for."""
    return card.is_xception(read_json(directory / CONFIG_FILE))


def push(repo_id: str, directory: Path) -> None:
    """Publishes a finished run with this project's model card, or with timm's card for other networks."""
    if is_xception(directory):
        published = upload.publish(directory, repo_id, message='Publish a fine-tuned xception_paper')
        print(f'Published: {published.commit_url or "nothing to do, the repository holds all of this"}')
    else:
        model = timm.create_model(f'local-dir:{directory}', pretrained=True)
        config = {'label_names': model.pretrained_cfg['label_names']}
        timm.models.push_to_hf_hub(model, repo_id, model_config=config, safe_serialization=True)
        print(f'Published: {repo_id}')


def report(
    task: Task, settings: Settings, predictions: Predictions, progress: Progress, figures: Mapping[str, Any]
) -> str:
    """The HTML report of a run: figures, curves, classes and mistakes."""
    split, run, name, evaluation = task.data.validation, task.run, settings.model.model, settings.output.eval_only
    items = _items(split, [int(predictions.indices[number]) for number in predictions.worst(MISTAKES)])
    outputs = 'those of the dataset' if figures['restricted'] else "all of the model's outputs"
    facts = {
        'Model': name,
        'Dataset': f'{settings.data.dataset}, {figures["split"]}',
        'Recipe': 'none: evaluation' if evaluation else settings.optimization.recipe,
        'Classes': outputs if evaluation else 'all',
        'Best epoch': f'{figures["epoch"]} of {figures["phase"]}' if 'epoch' in figures else 'none',
        'Computed on': device_model(task.machine.device),
        'Versions': f'xception_hub {__version__}, timm {timm.__version__}, torch {torch.__version__}, '
        f'Python {platform.python_version()}',
    }
    return render(
        predictions,
        class_names=task.data.class_names,
        title=f'{name} on {settings.data.dataset}',
        facts=facts,
        settings=settings.flat(),
        history=[dict(row, best=row == progress.best) for row in progress.history],
        thumbnail=lambda index: split.image(index, THUMBNAIL, items[index]),
        name=lambda index: split.cell_name(index, items[index]),
        warnings=[f'Left out: {image["name"]}: {image["reason"]}' for image in task.manifest['bad_images']],
        usage=usage(name if evaluation else f'local-dir:{run.directory.resolve()}', split.grey_maximum),
        heat=partial(_heat, task, items, bool(figures['restricted'])),
    )


def _heat(task: Task, items: Mapping[int, Cell], restricted: bool, index: int, number: int) -> Image.Image:
    """Draws how much each place of an image of the validation split adds to a class, over what the network sees of it.

    Raises:
        ModelError: The network has no feature maps.
    """
    model, transforms = task.model, task.transforms
    pixels = transforms.evaluation()(task.data.validation.image(index, transforms.min_side, items[index]))  # [3, H, W]
    images = pixels[None].to(next(model.parameters()).device)
    if restricted:
        number = outputs_of(model, task.data.class_names)[number]
    with evaluating(model):
        heat = in_unit_range(explain(model, images, [number]))[0]
    return overlay(seen(pixels, transforms.config['mean'], transforms.config['std']), heat)


def _items(split: Split, indices: Sequence[int]) -> dict[int, Cell]:
    """Image files of a split, by index. A stream is searched in one pass."""
    if not split.streamed:
        return {index: split.cell(index) for index in indices}
    wanted = set(indices)
    return {index: cell for index, cell in split.cells() if index in wanted}


def usage(model: str, grey_maximum: int | None = None) -> str:
    """Code that loads a model and classifies a photo."""
    more = f', grey_maximum={grey_maximum}' if grey_maximum else ''
    return f"""\
import timm, torch, xception_hub

model = timm.create_model({model!r}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
images = transform(xception_hub.open_image('photo.jpg'{more})).unsqueeze(0)
with torch.inference_mode():
    print(model.pretrained_cfg['label_names'][model(images).argmax()])"""
