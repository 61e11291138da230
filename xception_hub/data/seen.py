"""Which images a model has seen, by the digests of their files: a run that goes on with it must not be measured on
images that it was trained on.
"""

import base64
import json
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub.errors import EntryNotFoundError

from ..directory.write import IMAGES_FILE
from ..errors import DataError, in_one_line
from ..files import write_text
from ..weights.sources import source_of
from .labelled import Data, Split
from .splits import stratified, warn_of_missing

PREFIX = 8  # bytes of a sha256: of a billion images, two share them with a probability of 3 %


@dataclass(frozen=True)
class Seen:
    """Prefixes of the digests of images that a model was trained on, and of those held out to measure it."""

    trained: frozenset[bytes] = frozenset()
    held_out: frozenset[bytes] = frozenset()

    @classmethod
    def of_model(cls, name: str) -> 'Seen':
        """What a directory or a repository of the Hub records; nothing where it records nothing.

        Raises:
            DataError: The record is damaged.
        """
        if not name.startswith(('local-dir:', 'hf-hub:')):
            return cls()
        try:
            file = source_of(name).fetch([IMAGES_FILE])
        except Exception as e:  # of files, of the Hub and of the network: no error in common
            if not isinstance(e, (EntryNotFoundError, FileNotFoundError)):
                warnings.warn(f'The images that {name} was trained on are unknown: {in_one_line(e)}', stacklevel=2)
            return cls()
        try:
            packed = json.loads(file.read_text(encoding='utf-8'))
            parts = [base64.b64decode(packed[name], validate=True) for name in ('trained', 'held_out')]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DataError(f'{file} is damaged ({e}). Remove it if other images than before are used.') from e
        return cls(*(frozenset(part[i : i + PREFIX] for i in range(0, len(part), PREFIX)) for part in parts))

    def write(self, directory: Path) -> None:
        """Records it in a model directory."""
        pack = {n: base64.b64encode(b''.join(sorted(getattr(self, n)))).decode() for n in ('trained', 'held_out')}
        write_text(directory / IMAGES_FILE, json.dumps(pack))

    def after(self, data: Data) -> 'Seen':
        """What a model has seen that was trained and measured on these data, too."""
        trained = self.trained | {*_prefixes(data.train)}
        return Seen(trained, (self.held_out | {*_prefixes(data.validation)}) - trained)

    def share(self, data: Data, share: float, seed: int) -> Data:
        """The data with a validation split of images that the model was not trained on.

        Images that were held out before stay so; of those that are new, a share is. The others are for training. A
        group with an image that the model was trained on is for training; else, one with a held-out image is held out.
        """
        trained, held = (_among(data.train, names) for names in (self.trained, self.held_out))
        if not (trained | held).any():
            return data.with_validation(share, seed)
        labels, groups, seen = data.train.labels, data.train.groups, int((trained | held).sum())
        if len(groups):
            trained = np.isin(groups, groups[trained])
            held = np.isin(groups, groups[held]) & ~trained
        new, rows = np.flatnonzero(~trained & ~held), np.flatnonzero(held)
        with warnings.catch_warnings(), suppress(DataError):  # a class with one new image adds none
            warnings.simplefilter('ignore')
            more = stratified(labels[new], data.class_names, share, seed, groups[new] if len(groups) else groups)
            rows = np.union1d(rows, new[more])
        if not len(rows):
            raise DataError(
                f'The model was trained on all {"groups" if len(groups) else "images"}, so that no image is left to '
                f'measure it on. Add images that it has not seen, pass a --validation-table of such images, or start '
                f'from another --model.'
            )
        warn_of_missing(labels, rows.tolist(), data.class_names)
        note = (
            f'The model has seen {seen} of the images before{", and others of their groups" if len(groups) else ""}: '
            f'{int(held.sum())} that were held out stay so, and {int(trained.sum())} of training stay in training.'
        )
        return data.held_out(rows).noted(note)

    def without_trained(self, data: Data, evaluation: bool) -> Data:
        """The data with a validation split of its own, less the images in it that the model was trained on."""
        trained = _among(data.validation, self.trained)
        if not trained.any():
            return data
        text = f'The model was trained on {int(trained.sum())} of the {len(trained)} images of the validation split'
        if evaluation or trained.all():
            warnings.warn(f'{text}: the figures will be better than the model is.', stacklevel=3)
            return data
        warnings.warn(f'{text}. They are left out of it.', stacklevel=3)
        return data.without('validation', np.flatnonzero(trained))


def _prefixes(split: Split) -> Iterable[bytes]:
    return (digest[:PREFIX] for digest in split.digests if digest)


def _among(split: Split, names: frozenset[bytes]) -> np.ndarray:
    """[N], whether each image is one of those."""
    return np.array([digest[:PREFIX] in names for digest in split.digests] or np.zeros(len(split)), bool)
