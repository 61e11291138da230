"""The model card of a directory: its README.md, from what the directory itself holds.

What the directory doesn't tell, the card doesn't either: one that a fine-tuning wrote has no parity.json, and its card
no word of Keras' file or of proofs, but its figures.
"""

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils.sha import sha_fileobj
from timm.data import resolve_data_config

from .. import verify
from ..errors import CardError, CheckpointError

__all__ = ['CONFIG_FILE', 'METRICS_FILE', 'PARITY_FILE', 'WEIGHTS_FILE', 'is_xception', 'read_json', 'render']

WEIGHTS_FILE, CONFIG_FILE, PARITY_FILE, METRICS_FILE = (
    'model.safetensors',
    'config.json',
    'parity.json',
    'metrics.json',
)

PROJECT = 'OWNER/xception_hub'  # on GitHub; README.md calls it so too
PLACEHOLDER = 'ORG/NAME'  # of a card whose repository isn't known yet
PAPER = 'https://arxiv.org/abs/1610.02357'

LISTED_CLASSES = 20  # of more, the card says how many
LINE_LENGTH = 100  # of code, so that the Hub's pages show it without scrolling
# Figures of metrics.json: what the card calls them, and what the Hub does.
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
# What timm needs to prepare images; torch.hub's model gets it as arguments, for it doesn't read config.json.
DATA_FIELDS = ('input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std')
CROP_MODES = {
    'squash': 'resized to {} without regard to the aspect ratio',
    'center': 'resized to cover {}',
    'border': 'resized to fit into {}, with a border of the mean colour',
}


def render(directory: Path, repo_id: str | None = None, license: str | None = None) -> str:
    """The text of README.md, the same for the same files.

    Args:
        directory: With config.json and model.safetensors. parity.json adds the source and the proofs; config.json's
            `base_model`, if it has one, the repository that a fine-tuning started from; metrics.json its figures.
        repo_id: The repository that the code refers to, 'org/name' or 'org/name@revision'; a placeholder without it.
        license: The Hub's identifier of the weights' licence, like 'mit'. That in config.json's pretrained_cfg isn't
            taken for it: a fine-tuning may have left it there from what it started from.

    Raises:
        CardError: A file is missing, or isn't what its name says.
    """
    config = read_json(directory / CONFIG_FILE)
    parity, metrics = (
        read_json(directory / name) if (directory / name).is_file() else {} for name in (PARITY_FILE, METRICS_FILE)
    )
    try:
        sections = [
            _metadata(config, parity, metrics, repo_id, license),
            _introduction(config, parity, repo_id),
            _usage(config, repo_id or PLACEHOLDER),
            _facts(directory, config),
            _results(metrics),
            _parity(parity),
            _licence(parity, license),
        ]
    except (KeyError, TypeError, AttributeError) as e:
        raise CardError(
            f'{directory}: {CONFIG_FILE} or {PARITY_FILE} lacks what a card needs ({type(e).__name__}: {e}). Write the '
            f'directory with conversion.convert, or its {CONFIG_FILE} with timm.models.save_for_hf.'
        ) from e
    return '\n\n'.join(section for section in sections if section) + '\n'


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CardError: There is no such file, or it holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except FileNotFoundError as e:
        raise CardError(f'{file.parent} has no {file.name}. Name a directory that conversion.convert wrote.') from e
    except (OSError, ValueError) as e:
        raise CardError(f'{file} can not be read as JSON ({e}). Write the directory anew.') from e
    if not isinstance(content, dict):
        raise CardError(f'{file} holds a {type(content).__name__} instead of an object. Write the directory anew.')
    return content


def is_xception(config: dict[str, Any]) -> bool:
    """Whether a config.json is of this project's network, or of one of its variants."""
    return str(config.get('architecture')).startswith('xception_paper')


def _metadata(
    config: dict[str, Any], parity: dict[str, Any], metrics: dict[str, Any], repo_id: str | None, license: str | None
) -> str:
    """What the Hub files the model under."""
    task = _task(config)
    dataset = _dataset_name(metrics)
    results = [
        EvalResult(
            task_type=task, dataset_type=dataset, dataset_name=dataset, metric_type=kind, metric_value=metrics[name]
        )
        for name, kind in HUB_METRICS.items()
        if name in metrics
    ]
    data = ModelCardData(
        library_name='timm',
        pipeline_tag=task,
        license=license,
        base_model=config.get('base_model'),
        model_name=_title(repo_id) if results else None,
        eval_results=results or None,
        tags=[task, 'timm', 'xception', *(['keras'] if parity.get('source') else [])],
    )
    return f'---\n{data.to_yaml()}\n---'


def _title(repo_id: str | None) -> str:
    return repo_id.partition('@')[0].partition('/')[2] if repo_id else 'Xception'


def _task(config: dict[str, Any]) -> str:
    return 'image-classification' if config['num_classes'] else 'image-feature-extraction'


def _introduction(config: dict[str, Any], parity: dict[str, Any], repo_id: str | None) -> str:
    source = parity.get('source')
    text = (
        f"# {_title(repo_id)}\n\nThe Xception of [Chollet's paper]({PAPER}) as the timm model "
        f'`{config["architecture"]}`'
    )
    if not source:
        return f'{text}.'
    known = [_code(source['file'])]
    if source.get('sha256'):
        known.append(f'sha256 `{source["sha256"]}`')
    if source.get('keras_version') not in (None, 'unknown'):
        known.append(f'written by Keras {source["keras_version"]}')
    return f'{text}, converted from a Keras model: {", ".join(known)}.'


def _usage(config: dict[str, Any], repo_id: str) -> str:
    """Code that runs as it stands there, once the repository is on the Hub."""
    blocks = [
        f'## Use\n\nThe network is in [{PROJECT}](https://github.com/{PROJECT}): '
        f'`pip install git+https://github.com/{PROJECT}`.',
        _timm(config, repo_id),
        _torch_hub(config, repo_id),
        _transformers(config, repo_id),
    ]
    return '\n\n'.join(block for block in blocks if block)


def _timm(config: dict[str, Any], repo_id: str) -> str:
    size = _data_config(config)['input_size']
    if size[0] in IMAGE_MODES:
        imports, image = (
            'import timm, torch, xception_hub\nfrom PIL import Image',
            (
                'transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))\n'
                f"images = transform(Image.open('photo.jpg').convert({IMAGE_MODES[size[0]]!r})).unsqueeze(0)"
            ),
        )
    else:
        imports, image = 'import timm, torch, xception_hub', f'images = torch.zeros(1, {", ".join(map(str, size))})'
    return f"""\
With timm:

```python
{imports}

model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()  # or 'local-dir:' and a folder
{image}
with torch.inference_mode():
    print({_result(config)})
```"""


def _result(config: dict[str, Any]) -> str:
    """The expression of what a user wants to know of `model(images)`."""
    if config['num_classes'] < 2:
        return 'model(images)'
    if config.get('label_names'):
        return "model.pretrained_cfg['label_names'][model(images).argmax()]"
    return 'model(images).argmax().item()'


def _torch_hub(config: dict[str, Any], repo_id: str) -> str:
    """Pretrained weights of another repository, by timm's overlay; the network's arguments come with them."""
    args = {**(config.get('model_args') or {}), 'num_classes': config['num_classes']}
    # without the classes in the overlay, timm takes the classifier for one of another task and starts it afresh
    overlay = dict(hf_hub_id=repo_id, num_classes=config['num_classes'], **_data_config(config))
    return f"""\
With torch.hub, and nothing installed but its dependencies:

```python
import torch

model = torch.hub.load(
    '{PROJECT}', '{config['architecture']}', trust_repo=True, pretrained=True,
{_arguments(args, 4)},
    pretrained_cfg_overlay=dict(
{_arguments(overlay, 8)})).eval()
```"""


def _transformers(config: dict[str, Any], repo_id: str) -> str | None:
    """For what its pipelines can run: colour images, a vector, arguments without the one that they pass themselves."""
    args = config.get('model_args') or {}
    if not config.get('global_pool') or args.get('in_chans', 3) != 3 or 'num_classes' in args:
        return None
    name, _, revision = repo_id.partition('@')
    model = f"model='{name}', revision='{revision}'" if revision else f"model='{name}'"
    pooled, first = ('', '[0]') if config['num_classes'] else (', pool=True', '')
    return f"""\
With transformers:

```python
import xception_hub
from transformers import pipeline

compute = pipeline('{_task(config)}', {model}{pooled})
print(compute('photo.jpg'){first})
```"""


def _arguments(values: dict[str, Any], indent: int) -> str:
    """Keyword arguments of a call, in lines."""
    # a line ends between arguments, never within one, whose spaces are hidden meanwhile
    text = ', '.join(f'{name}={value!r}'.replace(' ', '\0') for name, value in values.items())
    spaces = ' ' * indent
    lines = textwrap.wrap(
        text,
        LINE_LENGTH,
        initial_indent=spaces,
        subsequent_indent=spaces,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return '\n'.join(lines).replace('\0', ' ')


def _facts(directory: Path, config: dict[str, Any]) -> str:
    weights = directory / WEIGHTS_FILE
    try:
        backbone = verify(weights)
        with weights.open('rb') as f:
            digest = sha_fileobj(f).hex()
    except (OSError, CheckpointError) as e:
        raise CardError(f'{directory} has no {WEIGHTS_FILE} of an Xception ({e}). Write the directory anew.') from e
    rows = {
        'classes': _classes(config),
        'images': _preparation(_data_config(config)),
        'final activation in Keras': _final_activation(config),
        'backbone, against what Keras publishes': str(backbone),
        f'`{WEIGHTS_FILE}`': f'sha256 `{digest}`',
    }
    lines = [f'| {name} | {value} |' for name, value in rows.items() if value]
    return '\n'.join(['## The model', '', '| | |', '|---|---|', *lines])


def _classes(config: dict[str, Any]) -> str:
    count, names = config['num_classes'], config.get('label_names') or []
    if not count:
        return 'none: the network returns features'
    if not names:
        return f'{count}, without names'
    more = f' and {len(names) - LISTED_CLASSES} more, in {CONFIG_FILE}' if len(names) > LISTED_CLASSES else ''
    return f'{count}: {", ".join(_plain(name) for name in names[:LISTED_CLASSES])}{more}'


def _preparation(data: dict[str, Any]) -> str:
    """How images are prepared, in words."""
    channels, height, width = data['input_size']
    size, resized = (
        f'{int(height / kept)}x{int(width / kept)}' for kept in (1, data['crop_pct'])
    )  # timm rounds down as well
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


def _final_activation(config: dict[str, Any]) -> str | None:
    """What Keras does with the logits, if it is known and does anything."""
    activation = (config.get('keras') or {}).get('final_activation')
    if not config['num_classes'] or activation is None:
        return None
    known = {'linear': 'none', 'unknown': 'not known, for the file held weights alone'}
    return f'{known.get(activation, activation)}; this network returns the logits'


def _dataset_name(metrics: dict[str, Any]) -> str:
    """A hub id as it is; of a path only the name, for the rest of it is nobody's business."""
    dataset = str(metrics.get('dataset', ''))
    return dataset if HUB_ID.fullmatch(dataset) and not Path(dataset).exists() else Path(dataset).name


def _results(metrics: dict[str, Any]) -> str | None:
    """What a fine-tuning has measured."""
    rows = [f'| {label} | {metrics[name]:.4f} |' for name, label in FIGURES.items() if name in metrics]
    if not rows:
        return None
    left_out = metrics.get('bad_images', 0)
    text = (
        f'Fine-tuned on {_code(_dataset_name(metrics))} and judged on {metrics["num_samples"]} images '
        f'({_plain(metrics["split"])}) that it was not trained on'
    )
    text += f'; {left_out} images that could not be decoded were left out.' if left_out else '.'
    return '\n'.join(['## Results', '', text, '', '| | |', '|---|---|', *rows])


def _licence(parity: dict[str, Any], license: str | None) -> str:
    weights = f'The weights: {_code(license)}.' if license else 'No licence of the weights was given with them.'
    source = f' They come from {_code(parity["source"]["file"])}.' if parity.get('source') else ''
    return f'## Licence\n\n{weights}{source} The code of {PROJECT}: Apache-2.0.'


def _parity(parity: dict[str, Any]) -> str | None:
    """The proofs: a table of the comparisons with Keras, a line for each other."""
    proofs = parity.get('proofs')
    if not proofs:
        return None
    compared = [proof for proof in proofs if {'dtype', 'size', 'worst', 'tolerance'} <= proof.keys()]
    lines = ['## Parity with Keras' if compared else '## What was shown', '']
    if compared:
        given = f', given {parity["reading"]},' if parity.get('reading') else ''
        lines += [
            f'Compared with {parity.get("reference") or "Keras"}{given} on the same images: the L2 norm of the '
            f"difference, relative to that of Keras' output, the largest of all taps.",
            '',
            '| precision | images | taps | difference | tolerance | |',
            '|---|---|---|---|---|---|',
        ]
        lines += [_comparison(proof) for proof in compared] + ['']
    lines += [f'- {_plain(proof["proof"])}: {_verdict(proof)}' for proof in proofs if proof not in compared]
    return '\n'.join(lines).rstrip()


def _comparison(proof: dict[str, Any]) -> str:
    size = 'x'.join(str(side) for side in proof['size'])
    return (
        f'| {proof["dtype"]} | {size} | {len(proof.get("differences") or [0])} | {proof["worst"]:.1e} | '
        f'{proof["tolerance"]:.0e} | {"equal" if proof["passed"] else "**different**"} |'
    )


def _verdict(proof: dict[str, Any]) -> str:
    verdict = 'passed' if proof['passed'] else '**failed**' if proof.get('decisive', True) else 'not decisive'
    return f'{verdict}; {_plain(proof["summary"])}' if proof.get('summary') else verdict


def _data_config(config: dict[str, Any]) -> dict[str, Any]:
    """timm's own reading of the preprocessing, with its defaults for what is missing."""
    data = resolve_data_config(pretrained_cfg=config['pretrained_cfg'])
    return {name: tuple(data[name]) if isinstance(data[name], list) else data[name] for name in DATA_FIELDS}


def _plain(text: object) -> str:
    """Foreign text for a line or cell of Markdown, in which it means nothing but itself."""
    words = ' '.join(str(text).split())
    return ''.join(f'\\{c}' if c in r'\`*_[]|<>#' else c for c in words)


def _code(text: object) -> str:
    """Foreign text as code; a backtick would end it."""
    return f'`{" ".join(str(text).split()).replace("`", "")}`'
