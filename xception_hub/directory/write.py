"""The files of a model directory, which `timm.create_model('local-dir:DIR', pretrained=True)` loads."""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import save_for_hf
from torch import nn

from ..errors import DirectoryError
from ..network import Xception
from ..weights.checkpoint_files import ARGUMENTS

WEIGHTS_FILE, CONFIG_FILE = 'model.safetensors', 'config.json'
PARITY_FILE, METRICS_FILE, IMAGES_FILE = 'parity.json', 'metrics.json', 'images.json'


def write_model(
    directory: Path,
    model: nn.Module,
    model_config: Mapping[str, Any],
    model_args: Mapping[str, Any],
    data_config: Mapping[str, Any] | None = None,
) -> None:
    """Writes model.safetensors and config.json. Each file replaces an older one atomically.

    Args:
        directory: An existing directory.
        model: The timm model to save.
        model_config: Entries of config.json, as `timm.models.save_for_hf` takes them.
        model_args: Arguments of the model that timm does not save by itself.
        data_config: Preparation of the images. By default the model's own.
    """
    with tempfile.TemporaryDirectory(prefix='.model', dir=directory) as part:
        save_for_hf(
            model,
            part,
            **dict(model_config=dict(model_config), model_args=dict(model_args) or None, safe_serialization=True),
            data_config=data_config and dict(data_config),
        )
        _add_header(Path(part) / WEIGHTS_FILE, model)
        config_file = Path(part) / CONFIG_FILE
        config = json.loads(config_file.read_text(encoding='utf-8'))
        # the pipelines of transformers pass num_classes themselves; passed twice, it is an error
        config.get('model_args', {}).pop('num_classes', None)
        _name_outputs(config)
        if final := getattr(model, 'final_activation', None):  # recorded by the file that the weights come from
            config['final_activation'] = final
            if final == 'sigmoid':
                config['problem_type'] = 'multi_label_classification'
        if isinstance(model, Xception):  # timm leaves it out for another image size than the name's
            config['pretrained_cfg']['pool_size'] = _map_size(model, config['pretrained_cfg']['input_size'])
        config_file.write_text(json.dumps(config, indent=2), encoding='utf-8')
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            _make_public(Path(part) / name)
            os.replace(Path(part) / name, directory / name)


def label_names_of(config: Mapping[str, Any]) -> list[str]:
    """Returns the names of a model's outputs in its config.json or its pretrained cfg; empty if there are none."""
    names = written_label_names(config)
    return list(names.values() if isinstance(names, dict) else names or [])


def written_label_names(config: Mapping[str, Any]) -> Any:
    """Returns the unchecked `label_names` from the root, else from the pretrained cfg, in timm's order."""
    return (config if 'label_names' in config else config.get('pretrained_cfg', {})).get('label_names')


def _name_outputs(config: dict[str, Any]) -> None:
    """Moves the names of the outputs to the entries that timm and transformers read.

    A training in transformers for other classes replaces `id2label`, but would keep `label_names` at the root, which
    take precedence. For the number of classes of an ImageNet, transformers knows the names without `id2label`.
    """
    names, imagenet = label_names_of(config), infer_imagenet_subset(config)
    if not names or (imagenet and names != ImageNetInfo(imagenet).label_names()):
        return
    config['pretrained_cfg']['label_names'] = config.pop('label_names')
    if not imagenet:
        config['id2label'] = dict(enumerate(names))
        if len({*names}) == len(names):
            config['label2id'] = {name: output for output, name in enumerate(names)}


def _map_size(model: Xception, input_size: Sequence[int]) -> list[int]:
    """Height and width of the last feature map. fastai takes a network without them for one that pools nothing."""
    network = copy.deepcopy(model).to('meta').eval()
    return [*network.forward_features(torch.empty(1, *input_size, device='meta')).shape[2:]]


def _add_header(file: Path, model: nn.Module) -> None:
    """Writes the arguments that the tensors depend on into the file's header, which timm leaves empty."""
    state = model.state_dict()
    arguments = getattr(state, '_metadata', {}).get('', {}).get(ARGUMENTS)
    if arguments is not None:
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        safetensors.torch.save_file(tensors, file, metadata={'format': 'pt', ARGUMENTS: arguments})
        _sort_metadata(file)


def _sort_metadata(file: Path) -> None:
    """Sorts the metadata, which safetensors writes in a random order, so that equal models give equal files."""
    with open(file, 'r+b') as opened:
        size = int.from_bytes(opened.read(8), 'little')
        header = json.loads(opened.read(size))
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
        opened.seek(8)
        opened.write(text.ljust(size))


@contextmanager
def new_directory(directory: Path, marker: str) -> Iterator[Path]:
    """Yields a temporary folder that replaces the directory if the block succeeds, and is deleted if it fails.

    Args:
        directory: The directory to write. Files of an earlier run in it are deleted.
        marker: Name of a file that shows that an earlier run wrote the directory.

    Raises:
        DirectoryError: The directory contains something else, or cannot be written.
    """
    if directory.exists():
        if not directory.is_dir():
            raise DirectoryError(f'{directory} is a file. Name a directory.')
        if any(directory.iterdir()) and not (directory / marker).is_file():
            raise DirectoryError(f'{directory} contains files that are not a conversion or export. Name another one.')
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f'.{directory.name}.', dir=directory.parent))
    except OSError as e:
        raise DirectoryError(f'{directory} cannot be written: {e}.') from e
    try:
        yield folder
        for path in (folder, *folder.iterdir()):
            _make_public(path)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(folder, directory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_public(path: Path) -> None:
    """Gives a temporary file or folder, which only its owner can open, the mode of the umask."""
    os.umask(mask := os.umask(0))
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DirectoryError: The file is missing, cannot be read, or contains no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        if not isinstance(content, dict):
            raise ValueError(f'it contains a {type(content).__name__}, not an object')
    except FileNotFoundError as e:
        raise DirectoryError(
            f'{file.parent} has no {file.name}. Name a directory that convert or finetune wrote.'
        ) from e
    except (OSError, ValueError) as e:
        raise DirectoryError(f'{file} cannot be read as JSON ({e}). Write the directory again.') from e
    return content
