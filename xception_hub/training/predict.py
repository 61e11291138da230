"""xception-hub predict photos --model local-dir:finetuned

The classes of images, as the model's own report judges them: a row for each image, on the screen or in a table.
"""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from cyclopts import App, Parameter
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from ..directory.card import OF_CLASSES, final_activation_of
from ..errors import DataError, ImageError, ModelError, SettingsError, XceptionHubError
from ..inference import models
from ..inference import tables as predictions
from ..inference.class_names import names_of
from ..weights.sources import source_of
from .data import Split, unlabelled
from .folders import read_folder
from .reading import is_saved
from .samples import Item, image_of, in_order
from .tables import TABLES

app = App(help=__doc__, version_flags=[])


class _Images(TorchDataset):
    """Images of a split, prepared for a model; None with the reason for one that cannot be used."""

    def __init__(self, split: Split, transforms: models.Transforms) -> None:
        self.split, self.min_side, self.transform = split, transforms.min_side, transforms.evaluation()

    def __getitem__(self, item: Item) -> tuple[str, Tensor | None, str]:
        cell = self.split.cell(item.index) if item.cell is None else item.cell
        name = self.split.cell_name(item.index, cell)
        try:
            return name, self.transform(image_of(self.split, item, self.min_side)), ''
        except ImageError as e:
            return name, None, str(e).removeprefix(f'{name}: ')


@dataclass(frozen=True)
class Predictor:
    """A model with the names of its classes.

    Attributes:
        model: A timm model in evaluation mode.
        class_names: Name of each output.
        multi_label: Whether an image has any number of classes: the sigmoid takes the place of the softmax.
    """

    model: models.TimmModel
    class_names: list[str]
    multi_label: bool

    @classmethod
    def of(cls, name: str, multi_label: bool | None = None, embed: bool = False) -> 'Predictor':
        """The model of a name that timm.create_model takes, or of a directory.

        Raises:
            ModelError: There is no such model, or its outputs are no classes.
        """
        if Path(name).is_dir():
            name = f'local-dir:{name}'
        model = models.build(name, None, True, {}, None).eval()
        config = source_of(name).read_config() if name.startswith(('local-dir:', 'hf-hub:')) else {}
        activation = final_activation_of(config)
        if activation not in OF_CLASSES and not embed:
            raise ModelError(
                f'The outputs of {name} are values: in Keras they end in {activation!r}, and are no probabilities of '
                f'classes. --embed writes the features before them.'
            )
        if multi_label is None:
            multi_label = config.get('problem_type') == 'multi_label_classification'
        return cls(model, names_of(model), multi_label)

    @torch.inference_mode()
    def rows(self, images: Tensor, top: int, threshold: float, whole: bool, embed: bool) -> list[dict[str, Any]]:
        """A row for each image [B, 3, H, W]: label, probability, the likeliest classes, all of them, the features."""
        if embed:
            features = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
            return [dict(features=vector) for vector in features.float().cpu().tolist()]
        logits = self.model(images).double()
        probabilities = logits.sigmoid() if self.multi_label else logits.softmax(1)
        found, classes = (tensor.cpu().tolist() for tensor in probabilities.topk(min(top, logits.shape[1])))
        rows = []
        for number, (values, places) in enumerate(zip(found, classes)):
            over = (probabilities[number] > threshold).nonzero().flatten().tolist() if self.multi_label else None
            likeliest = [(self.class_names[place], value) for place, value in zip(places, values)]
            row = predictions.row(likeliest, None if over is None else [self.class_names[place] for place in over])
            if whole:
                row['probabilities'] = predictions.as_json(probabilities[number].tolist())
            rows.append(row)
        return rows


def images_in(
    paths: Sequence[str], image_column: str | None, split: str | None, image_folder: Path | None
) -> tuple[list[Split], list[str]]:
    """The images of files and folders, then those of tables and datasets, and what was left out.

    Raises:
        DataError: There is no such file, or it holds no images.
    """
    files: list[dict[str, Any]] = []
    found, notes = list[Split](), list[str]()

    def add(images: Split, more: list[str]) -> None:
        found.append(images)
        notes.extend(more)

    for text in paths:
        path = Path(text)
        saved = path.is_dir() and is_saved(path)
        if path.is_dir() and not saved:
            folder = read_folder(path)
            if folder.all_tables() and not folder.all_images():  # such as a cloned repository of the Hub
                add(*unlabelled(text, image_column, split, image_folder))
                continue
            files += [{'image': {'path': str(image), 'bytes': None}} for image in folder.all_images()]
            for (suffix, why), count in folder.left_out().items():
                notes.append(f'{path}: {count} {suffix} left out ({why})')
        elif (
            saved or path.suffix.lower() in TABLES or (not path.exists() and (has_magic(text) or text.count('/') == 1))
        ):
            add(*unlabelled(text, image_column, split, image_folder))
        elif not path.exists():
            raise DataError(f'There is no {text}.')
        else:
            files.append({'image': {'path': text, 'bytes': None}})
    if files:
        nothing = np.zeros(len(files), np.int64)
        found.insert(0, Split('files', files, np.arange(len(files)), nothing))
    if not any(len(part) for part in found):
        raise DataError(f'{", ".join(paths)}: no image. {" ".join(notes)}'.strip())
    return found, notes


def predict(
    predictor: Predictor,
    splits: Sequence[Split],
    *,
    image_size: int | None = None,
    top: int = 5,
    threshold: float = 0.5,
    whole: bool = False,
    embed: bool = False,
    batch_size: int = 32,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """A row for each image, in order: `file`, what `Predictor.rows` gives, and `error` for one that cannot be used."""
    transforms = models.Transforms(predictor.model, image_size)
    device = next(predictor.model.parameters()).device
    for split in splits:
        loader: DataLoader = DataLoader(
            _Images(split, transforms), sampler=in_order(split), batch_size=batch_size, num_workers=workers,
            collate_fn=list,
        )  # fmt: skip
        for batch in loader:
            images = [image for _, image, _ in batch if image is not None]
            rows = iter(predictor.rows(torch.stack(images).to(device), top, threshold, whole, embed) if images else [])
            for name, image, reason in batch:
                yield dict(file=name, **(next(rows) if image is not None else {}), error=reason or None)


@app.default
def main(
    *paths: str,
    model: str,
    output: Path | None = None,
    top: int = 5,
    threshold: float = 0.5,
    probabilities: Annotated[bool, Parameter(negative='')] = False,
    embed: Annotated[bool, Parameter(negative='')] = False,
    multi_label: bool | None = None,
    image_size: int | None = None,
    image_column: str | None = None,
    image_folder: Path | None = None,
    split: str | None = None,
    grey_maximum: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: str = 'cuda' if torch.cuda.is_available() else 'cpu',
) -> None:
    """Predicts the classes of images. Images that cannot be used are listed, and have an error instead of a label.

    Args:
        paths: Images, folders of images (with all in them), tables with a column of images, datasets of the Hub.
        model: A directory that finetune or convert wrote, or what timm.create_model takes.
        output: Table to write: .csv, .jsonl or .parquet. By default rows are printed.
        top: Number of the likeliest classes in the column `top`.
        threshold: Probability above which a class counts, where an image has any number of them.
        probabilities: Write the probabilities of all classes, too, in the order of the model's outputs.
        embed: Write the features before the classifier instead of classes; to .jsonl or .parquet.
        multi_label: Whether an image has any number of classes. By default the model's config.json says so.
        image_size: Height and width of the images in pixels. By default the model's own.
        image_column: Column of a table with the images or their paths. By default it is found by type, then by name.
        image_folder: Folder of the images that a table names. By default the table's own.
        split: Split of a dataset that has several.
        grey_maximum: Value that is white in grey images of more than 8 bits: 4095 for 12 bits, 65535 for 16.
        batch_size: Images in one step.
        workers: Processes that decode images.
        device: Device that computes: cpu, cuda, mps.
    """
    warnings.showwarning = lambda message, *_: print(f'warning: {message}', file=sys.stderr)
    try:
        if not paths:
            raise SettingsError('Name images, a folder, a table or a dataset: xception-hub predict photos --model DIR.')
        if output and output.suffix not in predictions.SUFFIXES:
            raise SettingsError(
                f'{output} ends in {output.suffix!r}; a table ends in one of {", ".join(predictions.SUFFIXES)}.'
            )
        if embed and (output is None or output.suffix == '.csv'):
            raise SettingsError('--embed writes vectors: name an --output that ends in .jsonl or .parquet.')
        splits, notes = images_in(paths, image_column, split, image_folder)
        splits = [Split(s.name, s.source, s.source_rows, s.labels, s.files, grey_maximum) for s in splits]
        predictor = Predictor.of(model, multi_label, embed)
        predictor.model.to(device)
        for note in notes:
            print(note, file=sys.stderr)
        start, total = time.perf_counter(), sum(map(len, splits))
        bad = 0
        options = dict(image_size=image_size, top=top, threshold=threshold, whole=probabilities, embed=embed)
        found = predict(predictor, splits, **options, batch_size=batch_size, workers=workers)  # type: ignore[arg-type]
        of_classes = ['label', 'probability', 'top', *(['probabilities'] if probabilities else [])]
        columns = ['file', *(['features'] if embed else of_classes), 'error']
        with predictions.table(output, columns) if output else nullcontext() as write:
            for row in tqdm(found, total=total, unit='img', disable=None):
                if row['error']:
                    bad += 1
                    tqdm.write(f'Bad image: {row["file"]}: {row["error"]}', file=sys.stderr)
                if write:
                    write(row)
                elif not row['error']:
                    share = f'{row["probability"]:.3f}' if 'probability' in row else ''
                    tqdm.write(f'{row["file"]}\t{row["label"]}\t{share}'.rstrip(), file=sys.stdout)
        seconds = time.perf_counter() - start
        print(
            f'{total - bad} of {total} images in {seconds:.1f} s ({total / seconds:.1f} img/s), {bad} bad'
            + (f'. Written: {output}' if output else ''),
            file=sys.stderr,
        )
    except XceptionHubError as e:
        sys.exit(f'error: {e}')
