"""xception-hub explain photo.jpg --model finetuned

For each photo, draws heat maps of what made the model choose the most probable classes.
"""

import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from cyclopts import App, Parameter

from ..data.folders import read_folder
from ..errors import (
    DataError,
    ImageError,
    ModelError,
    SettingsError,
    exits_with_message,
    listed,
    printable,
    printable_lines,
)
from .attribution import explain, in_unit_range
from .overlay import overlay, seen, sheet
from .predictor import Predictor

NEAR = 5  # similar names that the error for an unknown class lists
MAX_CLASSES = 12  # in a picture
LONGEST = 32  # characters of a title

app = App(help=__doc__, version_flags=[])


def class_number(given: str, class_names: Sequence[str]) -> int:
    """The number of a class that is given by its name, in upper or lower case, or by its number.

    Raises:
        SettingsError: There is no such class.
    """
    folded = [name.casefold() for name in class_names]
    if given in class_names:
        return class_names.index(given)
    if folded.count(given.casefold()) == 1:
        return folded.index(given.casefold())
    if given.isdecimal() and int(given) < len(class_names):
        return int(given)
    near = [name for name in class_names if given.casefold() in name.casefold()]
    near += difflib.get_close_matches(given, class_names, NEAR)
    named = listed(list(dict.fromkeys(near or class_names)), NEAR)
    raise SettingsError(
        f'There is no class {given!r}. {"Similar names are" if near else "The first are"} {named}. Pass a name, or a '
        f'number from 0 to {len(class_names) - 1}.'
    )


def photos_in(paths: Sequence[Path], output: Path) -> list[Path]:
    """Returns the images of files and folders in their order, without the pictures that an earlier call wrote.

    Raises:
        DataError: There are no images.
    """
    photos: list[Path] = []
    for path in paths:
        found = [Path(image) for image in read_folder(path).all_images()] if path.is_dir() else [path]
        if path.resolve() in output.resolve().parents:
            found = [photo for photo in found if output.resolve() not in photo.resolve().parents]
        photos += found
    if not photos:
        raise DataError(f'{listed([str(path) for path in paths])}: no image. Name photos, or a folder with photos.')
    return photos


def targets_of(photos: Sequence[Path], folder: Path) -> list[Path]:
    """Returns a path without suffix for each photo: its name, with a number if several photos have the same name.

    Raises:
        SettingsError: A picture would replace a photo.
    """
    targets: dict[Path, None] = {}
    for photo in photos:
        target, number = folder / photo.stem, 1
        while target in targets:
            number += 1
            target = folder / f'{photo.stem}-{number}'
        targets[target] = None
    replaced = {photo.resolve() for photo in photos} & {Path(f'{target}.png').resolve() for target in targets}
    if replaced:
        raise SettingsError(f'The pictures would replace photos such as {min(replaced)}. Name another --output.')
    return [*targets]


@app.default
@exits_with_message()
def main(
    *paths: Path,
    model: str,
    output: Annotated[Path, Parameter(alias='-o')] = Path('explained'),
    top: int = 3,
    classes: Annotated[tuple[str, ...], Parameter('--class', negative='', show_default=False)] = (),
    method: Literal['gradcam', 'integrated-gradients'] = 'gradcam',
    raw: Annotated[bool, Parameter(negative='')] = False,
    image_size: int | None = None,
    grey_maximum: int | None = None,
    device: str | None = None,
) -> None:
    """Draw each photo as the network sees it, beside heat maps of what made the model choose each class.

    Args:
        paths: Images, or folders with their subfolders.
        model: Directory that finetune or convert wrote, or a name for timm.create_model.
        output: Directory for the pictures: one PNG per photo, with its name.
        top: Number of most probable classes to explain.
        classes: Class to explain instead, by its name or number. Repeat the option for several classes.
        method: gradcam for models with feature maps, integrated-gradients for any model.
        raw: Save the maps, too: one .npy per photo, [classes, height, width] in logits.
        image_size: Height and width of the images in pixels. By default the model's own size.
        grey_maximum: Value of white in grey images of more than 8 bits: 4095 for 12 bits, 65535 for 16.
        device: Device of the network: cpu, cuda or mps. By default a GPU, if there is one.
    """
    if not paths:
        raise SettingsError('Name photos: xception-hub explain photo.jpg --model DIR.')
    if not 1 <= (len(classes) or top) <= MAX_CLASSES:
        raise SettingsError(f'{len(classes) or top} classes do not fit into a picture: 1 to {MAX_CLASSES} do.')
    photos = photos_in(paths, output)
    targets = targets_of(photos, output)
    bad = 0
    predictor = Predictor(model, probabilities=True, image_size=image_size, grey_maximum=grey_maximum, device=device)
    network, transforms, class_names, _, on, _ = predictor.loaded
    if not class_names:
        raise ModelError(
            f'The outputs of {model} are features, without a classifier. A map explains a class: name a model that '
            f'classifies.'
        )
    numbers = [class_number(given, class_names) for given in classes]
    for photo, target, row in zip(photos, targets, predictor.predict(photos)):
        if row['error']:
            bad += 1
            print(printable_lines(f'Bad image: {photo}: {row["error"]}'), file=sys.stderr)
            continue
        probabilities = np.array(json.loads(row['probabilities']))
        chosen = numbers or np.argsort(-probabilities, kind='stable')[:top].tolist()
        image = transforms.evaluation()(transforms.open(photo)).to(on)
        maps = explain(network, image.expand(len(chosen), -1, -1, -1), chosen, method)
        named = [(class_names[number], probabilities[number]) for number in chosen]
        picture = seen(image, transforms.config['mean'], transforms.config['std'])
        titles = [f'{printable(name, LONGEST)} {value:.1%}' for name, value in named]
        heats = in_unit_range(maps, together=True)
        figure = sheet(
            picture, [(t, overlay(picture, heat)) for t, heat in zip(titles, heats)], printable(target.name, LONGEST)
        )
        try:
            output.mkdir(parents=True, exist_ok=True)
            figure.savefig(f'{target}.png')
            if raw:
                np.save(f'{target}.npy', maps.float().cpu().numpy())
        except OSError as e:
            raise DataError(f'{target}.png could not be written: {e}. Name another --output.') from e
        print(f'{target}.png\t{", ".join(f"{printable(name)} {probability:.3f}" for name, probability in named)}')
    if bad:
        raise ImageError(f'{bad} of {len(photos)} photos cannot be used.')
