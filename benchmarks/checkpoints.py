"""python benchmarks/checkpoints.py

Every kind of torch checkpoint of Xception, written as its library writes it and read by `xception_hub.from_checkpoint`.
The reference is the network that was saved, in float64: timm's `legacy_xception` with random weights and statistics,
inside whatever the kind puts around it. Prints the largest difference at 299 and 224 pixels, or the reason why a file
is not read.
"""

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import safetensors.torch
import timm
import torch
from cyclopts import App, Parameter
from torch import Tensor, nn
from torch.nn.utils import prune

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import xception_hub
from xception_hub.topology import LEGACY_NAMES

CLASSES = 7
Reference = Callable[[Tensor], Tensor]  # images [B, 3, H, W] -> logits [B, classes], or features [B, 2048]

app = App(help=__doc__, version_flags=[])


class Kind(NamedTuple):
    """A kind of checkpoint.

    Attributes:
        name: What the file is.
        save: Writes it for a trained `legacy_xception`, to a path; returns what it computes, None for the network.
        arguments: Arguments of `from_checkpoint` beside the path.
        refused: Part of the message if the file is refused without these arguments, or in any case.
        rounding: Largest difference where tensors are folded, which float32 rounds.
    """

    name: str
    save: Callable[[nn.Module, Path], Reference | None]
    arguments: Mapping[str, Any] = MappingProxyType({})
    refused: str = ''
    rounding: float = 0.0


def trained(seed: int = 0) -> nn.Module:
    """timm's `legacy_xception` whose activations live in all of its depth, and all of whose tensors matter."""
    torch.manual_seed(seed)
    model = timm.create_model('legacy_xception', num_classes=CLASSES)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.6, 1.4)
            norm.bias.normal_(std=0.3)
        model.train()(torch.randn(4, 3, 96, 96))
        for norm in norms:
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.7, 1.5))  # type: ignore[union-attr,arg-type]
    return model.eval()


def state_dict(change: Callable[[dict[str, Tensor]], Any], **options: Any) -> Callable[[nn.Module, Path], None]:
    """Saves what becomes of the state dict."""
    return lambda model, path: torch.save(change(model.state_dict()), path, **options)


def to_legacy(tensors: Mapping[str, Tensor], classifier: str = 'fc') -> dict[str, Tensor]:
    """Renames tensors [...] of `Xception` to the names of the legacy lineage."""
    names = {ours: legacy for legacy, ours in LEGACY_NAMES.items()} | {'head.fc': classifier}
    split = {name: name.rpartition('.') for name in tensors}
    return {f'{names[layer]}.{kind}': tensors[name] for name, (layer, _, kind) in split.items()}


def under(prefix: str, state: dict[str, Tensor], classifier: str = 'fc') -> dict[str, Tensor]:
    renamed = {name.replace('fc.', f'{classifier}.'): tensor for name, tensor in state.items()}
    return {prefix + name: tensor for name, tensor in renamed.items()}


def flat(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.flatten(1) if 'pointwise' in name else tensor for name, tensor in state.items()}


class TransferModel(nn.Module):
    """As FaceForensics++ wraps the network and saves it whole."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        del self.model.fc
        self.model.last_linear = head

    def forward(self, x: Tensor) -> Tensor:
        return self.model.last_linear(self.model.global_pool(self.model.forward_features(x)))  # type: ignore[operator]


def dropout_head() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(2048, CLASSES))


def deep_head() -> nn.Module:
    norm = nn.BatchNorm1d(32)
    norm.load_state_dict(
        {name: torch.rand(32) + 0.5 for name in ('weight', 'bias', 'running_mean', 'running_var')}, False
    )
    return nn.Sequential(nn.Linear(2048, 32), norm, nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, CLASSES, bias=False))


def transferred(
    head: Callable[[], nn.Module], whole: bool = False, **options: Any
) -> Callable[[nn.Module, Path], Reference]:
    """Saves a `TransferModel` as a whole, or its state dict."""

    def save(model: nn.Module, path: Path) -> Reference:
        wrapper = TransferModel(model, head()).eval()
        torch.save(wrapper if whole else wrapper.state_dict(), path, **options)
        return wrapper.double()

    return save


def average(model: nn.Module, path: Path) -> None:
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), path)


def safetensors_file(model: nn.Module, path: Path) -> None:
    safetensors.torch.save_file(model.state_dict(), path)


def fastai(model: nn.Module, path: Path) -> Reference:
    """A Sequential of the network's children, and fastai's head on two poolings."""
    body = nn.Sequential(*list(copy.deepcopy(model).children())[:-2])
    head = nn.Sequential(nn.BatchNorm1d(4096), nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, CLASSES))
    torch.save(nn.Sequential(body, head).state_dict(), path)
    return lambda x: model.double().forward_features(x).mean((2, 3))  # type: ignore[operator]


def cnn_finetune(model: nn.Module, path: Path) -> None:
    """Its wrapper: `_features` of Cadene's children, which share one activation, and `_classifier`."""
    children = dict(copy.deepcopy(model).named_children())
    for name in ('act2', 'act3', 'act4', 'global_pool', 'fc'):
        del children[name]
    features = nn.Sequential(*children.values())
    torch.save(nn.ModuleDict({'_features': features, '_classifier': model.fc}).state_dict(), path)  # type: ignore[dict-item]


def pytorchcv(model: nn.Module, path: Path) -> None:
    from pytorchcv.model_provider import get_model

    theirs = get_model('xception', num_classes=CLASSES)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), model.state_dict().values())))
    torch.save(theirs.state_dict(), path)


def smp(model: nn.Module, path: Path, part: str = '') -> Reference:
    """A network of segmentation_models_pytorch; its deepest map lacks the last activation."""
    import segmentation_models_pytorch

    net = segmentation_models_pytorch.Unet('xception', encoder_weights=None, classes=2).eval()
    backbone = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith('fc.')}
    net.encoder.load_state_dict(backbone)
    torch.save((net.get_submodule(part)).state_dict(), path)
    return lambda x: net.double().encoder(x)[-1].relu().mean((2, 3))


def other(name: str) -> Callable[[nn.Module, Path], None]:
    return lambda _, path: torch.save(timm.create_model(name).state_dict(), path)


class Assembled(nn.Module):
    """A network under a path, other modules under theirs, and a function of its last maps and of them."""

    def __init__(
        self, model: nn.Module, body: str, parts: Mapping[str, nn.Module], compute: Callable[..., Tensor]
    ) -> None:
        super().__init__()
        self.body, self.parts, self.compute = body, list(parts), compute
        del model.fc
        for path, module in {body: model, **parts}.items():
            place: nn.Module = self
            for parent in path.split('.')[:-1]:
                if not hasattr(place, parent):
                    place.add_module(parent, nn.Module())
                place = place.get_submodule(parent)
            place.add_module(path.rpartition('.')[2], module)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.get_submodule(self.body).forward_features(x)  # type: ignore[operator]
        return self.compute(maps, *(self.get_submodule(path) for path in self.parts))


def on_averages(maps: Tensor, *layers: nn.Module) -> Tensor:
    """Layers with ReLU between them, on averages of maps [B, 2048, H, W]."""
    x = layers[0](maps.mean((2, 3)))
    for layer in layers[1:]:
        x = layer(x.relu())
    return x


def excited(maps: Tensor, squeeze: nn.Module, fc: nn.Module) -> Tensor:
    return on_averages(maps * squeeze(maps.mean((2, 3))).sigmoid()[:, :, None, None], fc)


def assembled(
    parts: Callable[[], Mapping[str, nn.Module]], compute: Callable[..., Tensor] = on_averages, body: str = 'net'
) -> Callable[[nn.Module, Path], Reference]:
    """Saves the state dict of an `Assembled` network."""

    def save(model: nn.Module, path: Path) -> Reference:
        network = Assembled(copy.deepcopy(model), body, parts(), compute).eval()
        torch.save(network.state_dict(), path)
        return network.double()

    return save


def linear(features: int = 2048, classes: int = CLASSES, bias: bool = True) -> nn.Module:
    return nn.Linear(features, classes, bias=bias)


def pytorchcv_body(model: nn.Module, path: Path) -> Reference:
    """Its features within two Sequentials, and a classifier of one's own."""
    pytorchcv(model, path)
    features = {name[9:]: tensor for name, tensor in torch.load(path).items() if name.startswith('features.')}
    fc = linear()
    torch.save({**under('base.0.', features), **under('fc.', fc.state_dict())}, path)
    return lambda x: on_averages(model.double().forward_features(x), fc.double())  # type: ignore[operator]


def two_poolings(model: nn.Module, path: Path) -> Reference:
    """timm's `legacy_xception` on averages and maxima."""
    model.reset_classifier(CLASSES, 'catavgmax')  # type: ignore[operator]
    torch.save(model.state_dict(), path)
    return model.double()


class Normalize(nn.Module):
    """Normalizes images of 0 to 1 within the network."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('mean', torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer('std', torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))


def normalized(model: nn.Module, path: Path) -> None:
    torch.save(nn.Sequential(Normalize(), model).state_dict(), path)


def own(model: nn.Module, path: Path) -> None:
    """The state dict of the network that `from_checkpoint` made: its numerics travel with it."""
    torch.save(model.state_dict(), path)
    torch.save(xception_hub.from_checkpoint(path).state_dict(), path)


def changed(change: Callable[[nn.Module], Any], whole: bool = True) -> Callable[[nn.Module, Path], Reference]:
    """Saves a network in which something is another, as a whole or its state dict."""

    def save(model: nn.Module, path: Path) -> Reference:
        change(model)
        torch.save(model if whole else model.state_dict(), path)
        return model.double()

    return save


def replaced(old: type[nn.Module], new: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for module in list(model.modules()):
            module._modules.update({name: new() for name, part in module._modules.items() if isinstance(part, old)})

    return change


def biased(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.randn(module.out_channels) / 10)


def parametrized(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.conv1)
    torch.nn.utils.parametrizations.spectral_norm(model.conv2)
    prune.l1_unstructured(model.fc, 'weight', 0.5)


def softmax(model: nn.Module, path: Path) -> Reference:
    torch.save(nn.Sequential(model, nn.Softmax(1)), path)
    return model.double()


def torchscript(model: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 96, 96)), str(path))


DEEP = [{'fc': 32}, {'bn': 1e-5}, {'act': 'tanh'}, {'drop': 0.5}]
NO_HEAD = dict(num_classes=0)
HIDDEN = dict(head_layers=[{'fc': 32}, {'act': 'relu'}])
# fmt: off
KINDS = [
    Kind('timm `legacy_xception`, tstandley', state_dict(lambda state: state)),
    Kind('the same, before torch 1.6', state_dict(lambda state: state, _use_new_zipfile_serialization=False)),
    Kind('the same, safetensors', safetensors_file),
    Kind('Cadene', state_dict(lambda state: under('', state, 'last_linear'))),
    Kind("the lineage's first file: flat pointwise weights", state_dict(lambda state: flat(under('', state)))),
    Kind('DataParallel', state_dict(lambda state: under('module.', state))),
    Kind('Lightning', state_dict(lambda state: dict(state_dict=under('model.', state), hyper_parameters=dict(lr=1)))),
    Kind('containers in containers, under any key',
         state_dict(lambda state: dict(ckpt=dict(student=under('module.', state)), epoch=3, optimizer=dict(state={})))),
    Kind('averages beside raw weights: the raw ones',
         state_dict(lambda state: dict(state_dict=state, state_dict_ema={name: t + 1 for name, t in state.items()}))),
    Kind('AveragedModel', average),
    Kind('DeepfakeBench', state_dict(lambda state: {
        **under('backbone.', state, 'last_linear'), 'backbone.adjust_channel.0.weight': torch.zeros(512, 2048, 1, 1)})),
    Kind('FaceForensics++, state dict', transferred(dropout_head)),
    Kind('FaceForensics++, whole model', transferred(dropout_head, True)),
    Kind('the same, before torch 1.6', transferred(dropout_head, True, _use_new_zipfile_serialization=False)),
    Kind('whole model, Sequential head', transferred(deep_head, True)),
    Kind('state dict, Sequential head', transferred(deep_head), dict(head_layers=DEEP), 'neither activations'),
    Kind('two classifiers',
         state_dict(lambda state: {**state, 'old.weight': torch.ones(3, 2048), 'old.bias': torch.ones(3)}),
         dict(classifier='fc'), "2 classifiers: 'fc', 'old'"),
    Kind('pytorchcv', pytorchcv),
    Kind('cnn_finetune', cnn_finetune),
    Kind('fastai: the features', fastai, NO_HEAD, 'of two poolings'),
    Kind('segmentation_models_pytorch: the features', smp),
    Kind('its encoder alone', lambda model, path: smp(model, path, 'encoder'), dict(stem_padding=1),
         'segmentation_models_pytorch pads'),
    Kind('read once, and saved', own),
    Kind('whole model, SiLU everywhere', changed(replaced(nn.ReLU, nn.SiLU))),
    Kind('whole model, softmax at its end: the logits', softmax),
    Kind('whole model, InstanceNorm', changed(lambda net: setattr(net, 'bn3', nn.InstanceNorm2d(1536, affine=True))),
         refused='computes in a way that this network has no arguments for'),
    Kind('whole model, strides', changed(lambda model: setattr(model.conv1, 'stride', (1, 1))),
         refused='conv1: stride=(1, 1)'),
    Kind('convolutions with biases', changed(biased, whole=False), rounding=1e-5),
    Kind('weight norm, spectral norm, pruning', changed(parametrized, whole=False), rounding=1e-4),
    Kind('numpy arrays', state_dict(lambda state: {name: tensor.numpy() for name, tensor in state.items()})),
    Kind('qint8', state_dict(lambda state: {**state, 'fc.weight': torch.quantize_per_tensor(
        state['fc.weight'], 0.01, 0, torch.qint8)}), refused='only plain tensors are read'),
    Kind('mmpretrain', assembled(lambda: {'head.fc': linear()}, body='backbone.timm_model')),
    Kind('`features_only`, and a classifier two levels above',
         assembled(lambda: {'classifier': linear()}, body='net.backbone.body')),
    Kind('a head called `f1`', assembled(lambda: {'f1': linear()})),
    Kind('ArcFace: its weight as a linear layer', assembled(lambda: {'metric_fc': linear(bias=False)})),
    Kind('pytorchcv within Sequentials', pytorchcv_body),
    Kind('squeeze and excitation before the head',
         assembled(lambda: {'se': nn.Sequential(linear(2048, 128), nn.ReLU(), linear(128, 2048)), 'fc': linear()},
                   excited),
         refused='as attention does'),
    Kind('`fc1` and `fc2`', assembled(lambda: {'fc1': linear(2048, 32), 'fc2': linear(32)}), HIDDEN,
         'neither activations'),
    Kind('ModuleList', assembled(lambda: {'head.0': linear(2048, 32), 'head.1': linear(32)}), HIDDEN,
         'neither activations'),
    Kind('`catavgmax`', two_poolings, dict(global_pool='catavgmax'), 'of two poolings'),
    Kind('Normalize in front', normalized),
    Kind('TorchScript', torchscript, refused='TorchScript archive, whose program is not run'),
    Kind('timm `xception41`', other('xception41'), refused='an aligned Xception'),
    Kind('another network', other('resnet18'), refused='is no Xception'),
]
# fmt: on


@torch.inference_mode()
def difference(kind: Kind, model: nn.Module, folder: Path, sizes: tuple[int, ...]) -> str:
    """Largest difference between what was saved and what was read, or why the file is refused."""
    path = folder / 'file'
    reference = kind.save(copy.deepcopy(model), path) or copy.deepcopy(model).double()
    refusal = ''
    if kind.refused:
        try:
            xception_hub.from_checkpoint(path)
        except xception_hub.CheckpointError as e:
            refusal = str(e).replace(str(path), 'FILE')
        assert kind.refused in refusal, f'{kind.name}: {refusal or "not refused"}'
        if not kind.arguments:
            return f'refused: {kind.refused}'
    read = xception_hub.from_checkpoint(path, **kind.arguments).double()
    images = [torch.randn(1, 3, size, size, dtype=torch.float64) for size in sizes]
    worst = max((read(x) - reference(x)).abs().max().item() for x in images)
    said = f'; without the argument: {kind.refused}' if kind.refused else ''
    return f'{worst:.3g}{said}'


@app.default
def main(
    *, sizes: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative='')] = (299, 224), only: str = ''
) -> None:
    """Prints a row of a Markdown table for each kind.

    Args:
        sizes: Heights and widths of the images in pixels.
        only: Part of the names of the kinds to print.
    """
    warnings.simplefilter('ignore')
    model = trained()
    print('| the file | arguments | difference in float64 |\n|---|---|---|')
    for kind in KINDS:
        if only in kind.name:
            arguments = ', '.join(f'{name}={value!r}' for name, value in kind.arguments.items())
            with tempfile.TemporaryDirectory() as folder:
                result = difference(kind, model, Path(folder), sizes)
            print(f'| {kind.name} | {f"`{arguments}`" if arguments else ""} | {result} |', flush=True)


if __name__ == '__main__':
    app()
