"""timm models for fine-tuning: built for a number of classes, with transforms, split into two parts, and saved."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_input_data_config
from timm.models import get_model_args, get_model_input_config, is_model_in_modules
from torch import Tensor, nn

import xception_hub  # noqa: F401  registers the model

from ..directory.write import write_model
from ..errors import ModelError
from ..weights.checkpoints import HIDDEN
from ..weights.sources import hub_or_cache, source_of

# An nn.Module with what timm's models add: get_classifier, forward_features, pretrained_cfg, ...
TimmModel = Any

NAMES_CLASSES = ('local-dir:', 'hf-hub:')  # sources with a config.json, which may name the classes
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def build(
    name: str, num_classes: int | None, pretrained: bool, args: Mapping[str, Any], image_size: int | None
) -> TimmModel:
    """A timm model.

    Args:
        name: What `timm.create_model` takes: a registered name, 'hf-hub:org/name' or 'local-dir:DIR'.
        num_classes: Number of logits; None for the classes that the weights were trained on.
        pretrained: Whether to load the weights that belong to the name.
        args: Further arguments of the model; a value of None stands for the model's default.
        image_size: Height and width of the training images in pixels; None for the model's default.

    Raises:
        ModelError: There is no such model, it refuses the arguments or the image size, or it has no weights to load.
    """
    given = {key: value for key, value in args.items() if value is not None}
    if num_classes is not None:
        given['num_classes'] = num_classes
    try:
        # this project's own looks for its weights in several places
        is_here = not pretrained or name.startswith('local-dir:') or is_model_in_modules(name, ['xception_paper'])
        with nullcontext() if is_here else hub_or_cache():
            model = timm.create_model(name, pretrained=pretrained, **given)
    except ConnectionError as e:
        raise ModelError(
            f'{name} cannot be had: {e} Without a network: --model local-dir:DIR for a directory that is here, or '
            f'--no-pretrained.'
        ) from e
    except Exception as e:  # timm, the Hub and the network raise errors of many types
        raise ModelError(f'{name} cannot be built: {type(e).__name__}: {e}') from e
    if num_classes not in (None, model.pretrained_cfg['num_classes']):
        _start_equal(model)
    least = (model.pretrained_cfg.get('min_input_size') or (0, 0, 0))[1]
    least = min(least, get_model_args(model).get('min_img_size', least))
    if image_size is not None and image_size < least:
        raise ModelError(
            f'{name} takes images of {least} pixels at least, not {image_size}. Choose a larger '
            f'--image-size, or pass --model-args.min-img-size {image_size} if the model has that argument.'
        )
    return model


def build_for(
    name: str, class_names: Sequence[str], pretrained: bool, args: Mapping[str, Any], image_size: int | None
) -> tuple[TimmModel, list[str]]:
    """A timm model with a classifier for these classes, as `build`; rows of classes that it knows already are kept.

    A model whose config.json names classes of which some are among these keeps all layers before the classifier. One
    that knows none of them loses what was trained for its own classes: the hidden layers of the head, too.

    Returns:
        The model, and the classes whose rows are kept.
    """
    count = len(class_names)
    config = _config_of(name) if pretrained and name.startswith(NAMES_CLASSES) else {}
    before = label_names_of(config)
    kept = [class_name for class_name in class_names if class_name in before]
    if not kept:
        recorded = config.get('model_args') or {}
        hidden = {argument: () for argument in HIDDEN if before and recorded.get(argument)}
        model = build(name, count, pretrained, {**args, **hidden}, image_size)
        if before:
            _start_equal(model)
        return model, []
    model = build(name, None, True, args, image_size)
    old = model.get_classifier()
    if before == list(class_names):
        return model, kept
    if not isinstance(old, nn.Linear):
        return build(name, count, True, args, image_size), []
    model.reset_classifier(count)
    _start_equal(model)
    new = model.get_classifier()
    with torch.no_grad():
        for number, class_name in enumerate(class_names):
            if class_name in before:
                new.weight[number] = old.weight[before.index(class_name)]
                if old.bias is not None:
                    new.bias[number] = old.bias[before.index(class_name)]
    return model, kept


def _config_of(name: str) -> dict[str, Any]:
    """What the config.json of a directory or a repository says."""
    try:
        return source_of(name).read_config()
    except Exception as e:  # of files, of the Hub and of the network: no error in common
        raise ModelError(f'{name} cannot be had: {type(e).__name__}: {e}') from e


def _start_equal(model: TimmModel) -> None:
    """Lets all classes start out equal, with no random preferences to unlearn."""
    if isinstance(classifier := model.get_classifier(), nn.Linear):
        nn.init.zeros_(classifier.weight)
        if classifier.bias is not None:
            nn.init.zeros_(classifier.bias)


def label_names_of(config: Mapping[str, Any]) -> list[str]:
    """The names of a model's outputs in its config.json or its pretrained cfg; empty without any."""
    names = config.get('label_names') or []
    return list(names.values() if isinstance(names, dict) else names)


class Transforms:
    """Transforms from a Pillow image in RGB to the network's input [3, H, W].

    Attributes:
        config: timm's data config: input_size, mean, std, interpolation, crop_pct, ...
        min_side: Shorter side of an image in pixels below which an evaluation loses detail; see `images.open_image`.

    Raises:
        ModelError: The model does not take images of three channels, or of this size.
    """

    def __init__(self, model: TimmModel, image_size: int | None = None) -> None:
        channels = get_model_input_config(model)['input_size'][0]
        if channels != 3:
            raise ModelError(f'The model takes {channels} channels; images have three.')
        try:
            self.config = resolve_input_data_config(model, {'img_size': image_size})
        except ValueError as e:
            raise ModelError(f'{e} Choose that --image-size, or pass --model-args.img-size {image_size}.') from e
        if image_size is not None:
            _try(model, self.config['input_size'])
        self.min_side = math.ceil(max(self.config['input_size'][1:]) / self.config['crop_pct'])

    def evaluation(self) -> Callable[[Any], Tensor]:
        """timm's transform for evaluation."""
        return create_transform(**self.config)

    def training(self, scale: tuple[float, float], **augmentation: Any) -> Callable[[Any], Tensor]:
        """timm's transform for training; random crops take a share of the image's area within `scale`."""
        config = {name: value for name, value in self.config.items() if name not in ('crop_pct', 'crop_mode')}
        return create_transform(**config, is_training=True, scale=scale, **augmentation)

    def min_side_for(self, scale: tuple[float, float]) -> int:
        """Length in pixels of an image's shorter side below which a random crop would be enlarged."""
        return math.ceil(max(self.config['input_size'][1:]) / math.sqrt(scale[0]))


def _try(model: TimmModel, size: Sequence[int]) -> None:
    """Raises a ModelError if a model does not take images [3, H, W] of this size."""
    try:
        with evaluating(model):
            model(torch.zeros(1, *size, device=next(model.parameters()).device))
    except Exception as e:  # of layers, whose reasons are many
        raise ModelError(
            f'The model does not take images of {size[1]} pixels ({e}). Choose another --image-size.'
        ) from e


class ProbeHead(nn.Module):
    """Dropout and the classifier of a model: features [B, D] -> logits [B, C].

    Raises:
        ModelError: The model does not end in a single linear layer.
    """

    def __init__(self, model: TimmModel, drop_rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc = _linear_classifier(model)  # shared with the model, which so learns with it

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(x))


def _linear_classifier(model: TimmModel) -> nn.Linear:
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ModelError(
            f'{type(model).__name__} ends in {type(classifier).__name__} instead of one Linear layer, '
            f'so that its features cannot be computed once. Choose the recipe full.'
        )
    return classifier


def without_classifier(model: TimmModel) -> dict[str, Tensor]:
    """The tensors that the features depend on: all but the classifier's.

    Raises:
        ModelError: The model does not end in a single linear layer.
    """
    own = {tensor.data_ptr() for tensor in _linear_classifier(model).state_dict().values()}
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.data_ptr() not in own}


def features_of(model: TimmModel, images: Tensor) -> Tensor:
    """Features [B, D]: the input of the classifier."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def set_mode(module: nn.Module, frozen_batch_norm: bool) -> None:
    """Puts a module into training mode, with batch normalization frozen on request.

    Frozen batch normalization uses its moving statistics and does not update them, as in Keras with `training=False`.
    Its scale and offset are trained all the same. Call this again after anything that changes the mode.
    """
    module.train()
    if frozen_batch_norm:
        for layer in module.modules():
            if isinstance(layer, BATCH_NORMS):
                layer.eval()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients. Afterwards each layer is in its earlier mode again."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, training in modes:
            layer.training = training


def save(
    directory: Path,
    model: TimmModel,
    data_config: Mapping[str, Any],
    class_names: Sequence[str],
    multi_label: bool,
    base_model: str | None = None,
) -> None:
    """Writes model.safetensors and config.json, from which `timm.create_model('local-dir:...')` builds the model.

    Args:
        directory: An existing directory.
        model: The final model, which is moved to the CPU.
        data_config: timm's data config of the images, as in `Transforms.config`.
        class_names: Names of the classes in the order of the logits.
        multi_label: Whether an image has any number of labels; pipelines of transformers read this from config.json.
        base_model: Hub id of the weights that the training started from; None for none.
    """
    built_with = getattr(model, '_model_args', {})  # set by timm's factory; few models store their rates
    rates = {
        name: rate for name in ('drop_rate', 'drop_path_rate') if (rate := getattr(model, name, built_with.get(name)))
    }
    model_config: dict[str, Any] = dict(label_names=list(class_names), pretrained_cfg=dict(tag=None))
    if base_model:
        model_config['base_model'] = base_model
    if multi_label:
        model_config['problem_type'] = 'multi_label_classification'
    keys = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
    config = {key: data_config[key] for key in keys if key in data_config}
    model = model.to('cpu', memory_format=torch.contiguous_format)  # the layout of files
    write_model(directory, model, model_config, rates, config)


def hub_id(model: TimmModel) -> str | None:
    """Hub id of the repository of a pretrained model's weights; None if they have none."""
    config = model.pretrained_cfg
    name = str(config.get('hf_hub_id') or '').partition('@')[0]
    if name.endswith('/'):  # timm's own repositories are named after the model
        tag = config.get('tag')
        name += config['architecture'] + (f'.{tag}' if tag else '')
    return name or None
