"""Reads checkpoint files as data: every tensor by its path, and the network's arguments if the file records them."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ..errors import CheckpointError, DamagedCheckpointError
from ..file_kinds import TORCH, foreign
from .pickles import Inert, Saved, array_of, is_module, read_pickle
from .plain_tensors import plain

# Name -> tensor: convolutions [out, in / groups, height, width], matrices [out, in], all others [channels].
StateDict = dict[str, Tensor]

MAX_DEPTH = 6  # levels of containers around a network
MAX_NODES = 100_000  # tensors, containers and modules; a pickled Xception with its optimizer has about 1,500
MAX_PATH = 1000  # characters of the path of a tensor
ARGUMENTS = 'xception_hub'  # entry of a state dict's metadata, or of a safetensors header, with the network's arguments
UNREAD = re.compile(r'^torch\._utils\._rebuild_|^torch\._tensor\._rebuild|multiarray\._reconstruct$')


@dataclass
class CheckpointFile:
    """Contents of a checkpoint file.

    Attributes:
        tensors: Path of each tensor, 'state_dict.block1.skip.weight' -> tensor.
        arguments: Path of a network, 'state_dict' or '' -> its arguments that are not the default.
        architecture: Name of the model; None if the file gives none.
        pretrained_cfg: timm's description of the images, from a config.json beside the file.
        modules: Path of each pickled module -> the module.
        roots: Paths of the state dicts, and of the modules that stand in no other.
    """

    tensors: StateDict
    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)
    architecture: str | None = None
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, Inert] = field(default_factory=dict)
    roots: Collection[str] = ('',)

    def arguments_of(self, prefix: str) -> dict[str, Any] | None:
        """Arguments that the file records for the network under a prefix; None if it records none."""
        return self.arguments.get(prefix.rstrip('.'))


def read_checkpoint(path: str | Path, mapped: bool = False) -> CheckpointFile:
    """Reads a checkpoint file without running anything in it.

    Args:
        path: A safetensors file, or one of torch.save: a state dict, a pickled module, or either in containers.
        mapped: Map a safetensors file into memory instead of reading it, except for its matrices. Only for files that
            nobody overwrites, such as those of the Hugging Face cache.

    Raises:
        DamagedCheckpointError: The file is truncated or damaged.
        CheckpointError: There is no file, or it is of another format.
    """
    path = Path(path)
    if other := foreign(path, TORCH):
        raise CheckpointError(f'{path} {other}')
    if not path.is_file():
        raise CheckpointError(f'There is no file {path}.')
    with open(path, 'rb') as file:
        start = file.read(9)
    if path.suffix == '.safetensors' or start[8:] == b'{':  # the header after its size
        found = _read_safetensors(path, mapped)
    else:
        value = read_pickle(path)
        if isinstance(value, Inert) and isinstance(value.state, dict) and not is_module(value):
            # fastai's Learner (export.pkl) and skorch's classifiers hold a network among their attributes
            value = {name: held for name, held in value.state.items() if is_module(held)} or value
        if not isinstance(value, dict) and not is_module(value):
            what = value.kind if isinstance(value, Inert) else type(value).__name__
            raise CheckpointError(f'{path} holds a {what} instead of a state dict or a module.')
        try:
            nodes = dict(_walk(value, str(path)))
            found = CheckpointFile(
                {name: node for name, node in nodes.items() if isinstance(node, Tensor)},
                dict(_arguments(nodes)),
                value['arch'] if isinstance(value, dict) and isinstance(value.get('arch'), str) else None,
                modules={name: node for name, node in nodes.items() if is_module(node)},
                roots=[name for name, node in nodes.items() if isinstance(node, dict) or _is_root(name, nodes)],
            )
        except (AttributeError, LookupError, TypeError) as e:
            raise DamagedCheckpointError(f'{path} is damaged: a module in it has lost its parts ({e}).') from e
    found.tensors = plain(found.tensors, str(path))
    found.pretrained_cfg = _images_beside(path)
    config = _config_beside(path)
    if config and '' not in found.arguments:
        cfg = config.get('pretrained_cfg')  # one level with the rest in timm before 0.9
        found.pretrained_cfg |= {**config, **cfg} if isinstance(cfg, dict) else config
        if str(config['architecture']).startswith('xception_paper'):
            found.architecture = config['architecture']
            found.arguments[''] = config.get('model_args') or {}
    return found


def _is_root(name: str, nodes: dict[str, Any]) -> bool:
    parent = nodes.get(name.rpartition('.')[0]) if name else None
    return is_module(nodes[name]) and not is_module(parent)


def _read_safetensors(path: Path, mapped: bool) -> CheckpointFile:
    before = _state(path)
    try:
        with safetensors.safe_open(path, 'pt', backend='pread') as file:
            metadata, names = file.metadata() or {}, file.keys()
            # Products of matrices round differently in unaligned memory, so matrices are copied to where torch aligns
            # them. They come first, when the memory is not needed yet.
            matrices = [name for name in names if len(file.get_slice(name).get_shape()) == 2]
            tensors = {name: file.get_tensor(name).clone() for name in matrices}
            others = safetensors.torch.load_file(path) if mapped else {}
            tensors |= {
                name: others.get(name) if mapped else file.get_tensor(name) for name in names if name not in tensors
            }
    except safetensors.SafetensorError as e:
        raise DamagedCheckpointError(
            f'{path} is not a complete safetensors file ({e}). Download or convert it again.'
        ) from e
    if _state(path) != before:
        raise CheckpointError(f'{path} changed while it was read. Load it again when nothing writes it any more.')
    arguments = as_arguments(metadata.get(ARGUMENTS))
    tensors = {name: tensors[name] for name in names}
    return CheckpointFile(tensors, {} if arguments is None else {'': arguments})


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file does."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _config_beside(path: Path) -> dict[str, Any] | None:
    """The config.json of a model directory of timm, if the file is the weights of one."""
    file = path.with_name('config.json')
    if path.stem not in ('model', 'pytorch_model') or not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as e:
        raise CheckpointError(f'{file}, which describes the network of {path.name}, is not JSON ({e}).') from e
    return config if isinstance(config, dict) and isinstance(config.get('architecture'), str) else None


def _images_beside(path: Path) -> dict[str, Any]:
    """Mean and deviation of the preprocessor_config.json of transformers; {} if it has none for images of 0 to 1."""
    file = path.with_name('preprocessor_config.json')
    try:
        config = json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}
        mean, std = config['image_mean'], config['image_std']
    except (KeyError, TypeError, ValueError):
        return {}
    is_used = config.get('do_normalize', True) and config.get('do_rescale', True)
    return dict(mean=mean, std=std) if is_used and abs(config.get('rescale_factor', 1 / 255) - 1 / 255) < 1e-6 else {}


def _walk(value: Any, source: str) -> Iterator[tuple[str, Any]]:
    """Every tensor, container and module of a file, by its path.

    Raises:
        CheckpointError: There are more of them than any network has. One object can stand in many places.
    """
    stack: list[tuple[str, Any, int]] = [('', value, 0)]
    for _ in range(MAX_NODES):
        if not stack:
            return
        path, node, depth = stack.pop()
        children: dict[Any, Any] = {}
        if is_module(node):
            kinds = ('_parameters', '_buffers', '_modules')
            children = {name: child for kind in kinds for name, child in (node.state.get(kind) or {}).items()}
        elif isinstance(node, dict) and depth < MAX_DEPTH:
            children, depth = node, depth + 1
        elif isinstance(node, Inert):
            node = _array(node, path, source)
        if len(path) > MAX_PATH:
            break
        if not (isinstance(node, Tensor) or is_module(node) or node is children):
            continue
        yield path, node
        named = [(f'{path}.{name}' if path else str(name), child, depth) for name, child in children.items()
                 if isinstance(name, (str, int))]  # fmt: skip
        stack += reversed(named)  # in the order of the file
    raise CheckpointError(f'{source} has more or deeper tensors and containers than a checkpoint of this network. '
                          f'Save the network alone: torch.save(model.state_dict(), ...).')  # fmt: skip


def _array(value: Inert, path: str, source: str) -> Tensor | None:
    """The values of numpy's array; None for what is no tensor.

    Raises:
        CheckpointError: It may be a weight, of a kind that is not read.
    """
    array = array_of(value)
    is_weight = UNREAD.search(value.kind) and path.rpartition('.')[2] in ('weight', 'bias', 'running_mean')
    if array is None and (is_weight or '.quantized.' in value.kind):
        raise CheckpointError(
            f'{source}: {path} is a {value.kind}, but only plain tensors are read. Where the file is trusted, its '
            f'state dict becomes plain by torch.save({{name: tensor.dequantize() if tensor.is_quantized else '
            f"tensor.to_dense() for name, tensor in STATE_DICT.items()}}, 'plain.pth'). A network that was quantized "
            f'for its activations too computes something else with them.'
        )
    return array


def _arguments(nodes: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Arguments of the networks in a file, by their paths. `Xception.state_dict()` records them."""
    for path, node in nodes.items():
        for name, metadata in node.metadata.items() if isinstance(node, Saved) else ():
            arguments = as_arguments(metadata.get(ARGUMENTS)) if isinstance(metadata, dict) else None
            if arguments is not None:
                yield '.'.join(part for part in (path, str(name)) if part), arguments
        if is_module(node) and node.kind.endswith('.network.Xception'):
            yield path, _arguments_of_module(node.state)


def _arguments_of_module(state: dict[str, Any]) -> dict[str, Any]:
    """Arguments that `Xception.state_dict()` would have recorded for a pickled network of this project."""
    head = state['_modules']['head'].state
    pool_type = head['_modules']['global_pool'].state['pool_type']
    return {**state['arguments'], 'global_pool': pool_type, 'head_layers': [dict(layer) for layer in head['layers']]}


def as_arguments(text: Any) -> dict[str, Any] | None:
    """Recorded arguments; None for none.

    Raises:
        CheckpointError: The text is no object of JSON, so that what it records is unknown.
    """
    if text is None:
        return None
    try:
        arguments = json.loads(text)
    except (TypeError, ValueError):
        arguments = None
    if not isinstance(arguments, dict):
        raise CheckpointError(
            f"The metadata records arguments that are no JSON object: {text!r:.200}. Remove the entry '{ARGUMENTS}' "
            f'from the metadata, and pass the arguments of the network yourself.'
        )
    return arguments
