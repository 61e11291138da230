"""What a run says and leaves behind: rows of a table while it goes on, the report in the end."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from .. import __version__
from .data import Split
from .metrics import Predictions
from .report import MISTAKES, THUMBNAIL, render
from .samples import Item, cell_of, open_image

__all__ = ['page', 'row', 'table']

COLUMNS = {
    'phase': 12,
    'epoch': 6,
    'learning_rate': 10,
    'train_loss': 10,
    'loss': 8,
    'top1': 8,
    'top5': 8,
    'macro_f1': 9,
    'mean_average_precision': 9,
    'map_at_100': 9,
    'images_per_second': 9,
}
HEADINGS = {
    'learning_rate': 'rate',
    'train_loss': 'train loss',
    'mean_average_precision': 'mAP',
    'map_at_100': 'MAP@100',
    'images_per_second': 'images/s',
    'macro_f1': 'macro F1',
}
FORMATS = {'learning_rate': '.2e', 'images_per_second': '.1f'}


def row(figures: Mapping[str, Any], best: bool, heading: bool) -> str:
    """An epoch as a line of a table, below a line of headings on request."""
    columns = {name: width for name, width in COLUMNS.items() if name in figures}
    cells = [_cell(name, figures[name]).rjust(width) for name, width in columns.items()]
    line = ' '.join(cells) + ('  best' if best else '')
    headings = ' '.join(HEADINGS.get(name, name).rjust(width) for name, width in columns.items())
    return f'{headings}\n{line}' if heading else line


def _cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        return format(value, FORMATS.get(name, '.4f'))
    return '' if value is None else str(value)


def table(figures: Mapping[str, Any]) -> str:
    """Figures as lines."""
    return '\n'.join(f'{name:24} {_cell(name, value)}' for name, value in figures.items())


def page(
    predictions: Predictions,
    split: Split,
    class_names: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    figures: Mapping[str, Any],
    bad_images: Sequence[str],
    folder: Path,
    device: torch.device,
    importance: Sequence[float] | None = None,
) -> str:
    """The report.

    Args:
        predictions: On the split.
        split: That was judged on.
        class_names: In the order of the classes.
        history: Figures of each epoch.
        settings: All of them.
        figures: As in metrics.json.
        bad_images: That were left out, with the reasons.
        folder: Of the model.
        device: It was computed on.
        importance: [C] weights of the classes in `metrics.map_at_100`.
    """
    wanted = [int(predictions.rows[position]) for position in predictions.worst(MISTAKES)]
    items = _items(split, wanted)
    facts = {
        'Model': settings['model'],
        'Dataset': f'{settings["dataset"]}, {figures["split"]}',
        'Recipe': 'none: evaluation' if settings['eval_only'] else settings['recipe'],
        'Best epoch': f'{figures["epoch"]} of {figures["phase"]}' if 'epoch' in figures else 'none',
        'Computed on': _hardware(device),
        'Versions': f'xception_hub {__version__}, timm {timm.__version__}, torch {torch.__version__}, '
        f'Python {platform.python_version()}',
    }
    model = settings['model'] if settings['eval_only'] else f'local-dir:{folder.resolve()}'
    return render(
        predictions,
        class_names=class_names,
        title=f'{settings["model"]} on {settings["dataset"]}',
        facts=facts,
        settings=settings,
        history=history,
        thumbnail=lambda position: open_image(split, items[position], THUMBNAIL),
        name=lambda position: split.cell_name(position, cell_of(split, items[position])),
        warnings=[f'Left out: {image}' for image in bad_images],
        usage=usage(model),
        importance=importance,
    )


def _items(split: Split, positions: Sequence[int]) -> dict[int, Item]:
    """What opens images of a split; of a stream they are looked up in one pass."""
    if not split.streamed:
        return {position: Item(position) for position in positions}
    wanted = set(positions)
    return {position: Item(position, cell=cell) for position, cell in split.cells() if position in wanted}


def _hardware(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{platform.machine()} {device.type}, {torch.get_num_threads()} threads'


def usage(model: str) -> str:
    """Code that loads a model and classifies a photo."""
    return f"""\
import timm, torch, xception_hub
from PIL import Image

model = timm.create_model({model!r}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
images = transform(Image.open('photo.jpg').convert('RGB')).unsqueeze(0)
with torch.inference_mode():
    print(model.pretrained_cfg['label_names'][model(images).argmax()])"""
