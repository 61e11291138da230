"""The model card of a directory: README.md, from `card.md.jinja` and the directory's files.

The card of a converted directory, which has parity.json, names the Keras file and the proofs. The card of a fine-tuned
one, which has metrics.json, shows the results.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from timm.data import resolve_data_config

from ..errors import MAX_LINE, MAX_NAME, CardError, CheckpointError, listed, printable
from ..files import sha256_of
from ..weights.sources import verify
from .config import OF_CLASSES, final_activation_of
from .write import CONFIG_FILE, METRICS_FILE, PARITY_FILE, WEIGHTS_FILE, label_names_of, read_json

PROJECT = 'OWNER/xception_hub'  # on GitHub; README.md uses the same name
PLACEHOLDER = 'ORG/NAME'  # stands for a repository that is not known yet
LISTED_CLASSES = 20  # largest number of class names on the card; the others are counted
# Figures of metrics.json by their names on the card; HUB_METRICS has their names on the Hub.
FIGURES = {
    'top1': 'top-1',
    'top5': 'top-5',
    'macro_f1': 'macro F1',
    'micro_f1': 'micro F1',
    'mean_average_precision': 'mean average precision',
    'map_at_100': 'MAP@100',
    'loss': 'cross-entropy',
    'calibration_error': 'expected calibration error',
}
HUB_METRICS = {'top1': 'accuracy', 'macro_f1': 'f1'}
HUB_ID = re.compile(r'[\w.-]+(/[\w.-]+)?')
IMAGE_MODES = {1: 'L', 3: 'RGB'}  # Pillow's, by number of channels
# timm needs these to prepare images. torch.hub does not read config.json, so they are arguments there.
DATA_FIELDS = ('input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std')
NO_ACTIVATION = {'linear': 'none', 'unknown': 'not known: the file contained only weights'}
CROP_MODES = {
    'squash': 'resized to {} without regard to the aspect ratio',
    'center': 'resized to cover {}',
    'border': 'resized to fit into {}, with a border of the mean colour',
}


def render(directory: Path, repo_id: str | None = None, license: str | None = None) -> str:
    """Renders README.md from config.json and model.safetensors, and from parity.json and metrics.json if there are any.

    Args:
        directory: A model directory. The same files always give the same text.
        repo_id: Repository in the card's code, 'org/name' or 'org/name@revision'; a placeholder if None.
        license: The Hub's identifier of the weights' licence, like 'mit'. The licence in config.json's pretrained_cfg
            is ignored: after a fine-tuning it may still be that of the weights it started from.

    Raises:
        DirectoryError: A file is missing, damaged or incomplete.
    """
    config = read_json(directory / CONFIG_FILE)
    parity, metrics = (
        read_json(directory / name) if (directory / name).is_file() else {} for name in (PARITY_FILE, METRICS_FILE)
    )
    try:
        context = _context(directory, config, parity, metrics)
        title = repo_id.partition('@')[0].partition('/')[2] if repo_id else 'Xception'
        context |= dict(title=title, project=PROJECT, repo_id=repo_id or PLACEHOLDER, license=license)
        context['metadata'] = _metadata(context)
        return ENVIRONMENT.get_template('card.md.jinja').render(context)
    except (KeyError, TypeError, AttributeError, jinja2.UndefinedError) as e:
        raise CardError(
            f'{directory}: {CONFIG_FILE} or {PARITY_FILE} lacks what a card needs ({type(e).__name__}: {e}). Write the '
            f'directory with xception-hub convert, or its {CONFIG_FILE} with timm.models.save_for_hf.'
        ) from e


def _context(
    directory: Path, config: dict[str, Any], parity: dict[str, Any], metrics: dict[str, Any]
) -> dict[str, Any]:
    """Values that the template uses, without those that the caller of `render` gives."""
    num_classes, args = config['num_classes'], config.get('model_args') or {}
    for name in (config['architecture'], *args):  # parts of the card's code
        if not re.fullmatch(r'[\w.]+', str(name)):
            raise CardError(f'{directory / CONFIG_FILE}: {name!r} is not the name of a model or an argument.')
    data, proofs, weights = _data_config(config), parity.get('proofs') or [], directory / WEIGHTS_FILE
    try:
        backbone, sha256 = str(verify(weights)), sha256_of([weights])
    except (OSError, CheckpointError) as e:
        raise CardError(f'{directory} has no {WEIGHTS_FILE} of an Xception ({e}). Write the directory again.') from e
    image_mode, activation = IMAGE_MODES.get(data['input_size'][0]), final_activation_of(config)
    recorded = 'final_activation' in (config.get('keras') or {})
    photo = f"Image.open('photo.jpg').convert({image_mode!r})"
    if metrics:  # training rotates images according to their EXIF data; Keras does not
        grey_maximum = config.get('grey_maximum')
        photo = f"xception_hub.open_image('photo.jpg'{f', grey_maximum={grey_maximum}' if grey_maximum else ''})"
    return dict(
        architecture=config['architecture'],
        base_model=config.get('base_model'),
        num_classes=num_classes,
        label_names=label_names_of(config),
        task='image-classification' if num_classes else 'image-feature-extraction',
        data=data,
        image_mode=image_mode,
        photo=photo,
        model_args={**args, 'num_classes': num_classes},
        # the pipelines need colour images, pooled features and classes, and pass num_classes themselves
        has_pipeline=bool(config.get('global_pool'))
        and args.get('in_chans', 3) == 3
        and 'num_classes' not in args
        and activation in OF_CLASSES,
        classes=_classes(num_classes, label_names_of(config)),
        preparation=_preparation(data),
        final_activation=NO_ACTIVATION.get(activation, activation) if num_classes and recorded else None,
        backbone=backbone,
        sha256=sha256,
        metrics=metrics and dict(metrics, bad_images=metrics.get('bad_images', 0)),
        dataset=_dataset_name(metrics),
        results=[(label, metrics[name]) for name, label in FIGURES.items() if name in metrics],
        source=parity.get('source'),
        proofs=proofs,
        compared=[proof for proof in proofs if {'dtype', 'size', 'worst', 'tolerance'} <= proof.keys()],
        reference=parity.get('reference') or 'Keras',
        reading=parity.get('reading'),
    )


def is_xception(config: dict[str, Any]) -> bool:
    """Whether a config.json describes the Xception of this project or one of its variants."""
    return str(config.get('architecture')).startswith('xception_paper')


def _metadata(context: dict[str, Any]) -> str:
    """YAML header of the card, which the Hub uses to sort and find the model."""
    task, dataset, metrics = context['task'], context['dataset'], context['metrics']
    figures = {kind: metrics[name] for name, kind in HUB_METRICS.items() if name in metrics}
    results = [EvalResult(task, dataset, dataset, kind, figure) for kind, figure in figures.items()]
    data = ModelCardData(
        library_name='timm',
        pipeline_tag=task,
        license=context['license'],
        base_model=context['base_model'],
        model_name=context['title'] if results else None,
        eval_results=results or None,
        tags=[task, 'timm', 'xception', *(['keras'] if context['source'] else [])],
    )
    return data.to_yaml()


def _classes(count: int, names: list[str]) -> str:
    if not count:
        return 'none: the network returns features'
    if not names:
        return f'{count}, without names'
    more = f', in {CONFIG_FILE}' if len(names) > LISTED_CLASSES else ''
    return f'{count}: {listed([_plain(name, MAX_NAME) for name in names], LISTED_CLASSES)}{more}'


def _preparation(data: dict[str, Any]) -> str:
    """Describes the preparation of the images."""
    channels, height, width = data['input_size']
    size, resized = (
        f'{int(height / kept)}x{int(width / kept)}' for kept in (1, data['crop_pct'])
    )  # timm rounds down, too
    words = [CROP_MODES[data['crop_mode']].format(resized)]
    if resized != size or data['crop_mode'] != 'squash':
        words.append('cropped to the middle')
    return (
        f'{size} pixels, {channels} channel{"s" if channels > 1 else ""}: {", ".join(words)}; '
        f'{data["interpolation"]} resampling; {_value_range(data["mean"], data["std"])}'
    )


def _value_range(mean: Sequence[float], std: Sequence[float]) -> str:
    if len(set(mean)) == len(set(std)) == 1:
        return f'values from {-mean[0] / std[0] + 0.0:g} to {(1 - mean[0]) / std[0]:g}'
    means, stds = (', '.join(f'{value:g}' for value in values) for values in (mean, std))
    return f'values in 0..1, less the mean ({means}), divided by ({stds})'


def _dataset_name(metrics: dict[str, Any]) -> str:
    """Name of the dataset: a hub id in full, but only the last part of a path, since the rest is private."""
    dataset = str(metrics.get('dataset', ''))
    return dataset if HUB_ID.fullmatch(dataset) and not Path(dataset).exists() else Path(dataset).name


def _data_config(config: dict[str, Any]) -> dict[str, Any]:
    """Preprocessing as timm reads it. Missing fields have timm's defaults."""
    data = resolve_data_config(pretrained_cfg=config['pretrained_cfg'])
    return {name: tuple(data[name]) if isinstance(data[name], list) else data[name] for name in DATA_FIELDS}


def _plain(text: object, most: int = MAX_LINE) -> str:
    """Text from outside, escaped for a line or a table cell of Markdown."""
    words = printable(' '.join(str(text).split()), most)
    return ''.join(f'\\{c}' if c in r'\`*_[]|<>#' else c for c in words)


def _code(text: object) -> str:
    """Text from outside as Markdown code, without backticks, which would end it."""
    return f'`{printable(" ".join(str(text).split())).replace("`", "")}`'


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)
ENVIRONMENT.filters.update(plain=_plain, code=_code, repr=repr)
