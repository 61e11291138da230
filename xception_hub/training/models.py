"""timm models as a fine-tuning needs them: built for the classes, with their transforms, in two parts, and saved."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_input_data_config
from timm.models import get_model_args, get_model_input_config
from torch import Tensor, nn

import xception_hub  # noqa: F401  registers the model

from ..directory.write import write_model
from ..errors import ModelError

# With what timm's models have beside an nn.Module's: get_classifier, forward_features, pretrained_cfg, ...
TimmModel = Any

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def build(
    name: str, num_classes: int | None, pretrained: bool, args: Mapping[str, Any], image_size: int | None
) -> TimmModel:
    """A timm model.

    Args:
        name: What `timm.create_model` takes: a registered name, 'hf-hub:org/name' or 'local-dir:DIR'.
        num_classes: Width of its logits; None for those that the weights were trained on.
        pretrained: Load the weights that go with the name.
        args: Further arguments of the model; None stands for its default.
        image_size: Height and width of the images that it will be trained on, in pixels.

    Raises:
        ModelError: There is no such model, it doesn't take the arguments, or its weights can't be had.
    """
    given = {key: value for key, value in args.items() if value is not None}
    if num_classes is not None:
        given['num_classes'] = num_classes
    try:
        model = timm.create_model(name, pretrained=pretrained, **given)
    except Exception as e:  # timm's models raise whatever their arguments, the Hub or the network lead them to
        raise ModelError(f'{name} cannot be built: {type(e).__name__}: {e}') from e
    classifier = model.get_classifier()
    if num_classes not in (None, model.pretrained_cfg['num_classes']) and isinstance(classifier, nn.Linear):
        nn.init.zeros_(classifier.weight)  # all classes the same, instead of random preferences to unlearn first
        nn.init.zeros_(classifier.bias)
    least = (model.pretrained_cfg.get('min_input_size') or (0, 0, 0))[1]
    least = min(least, get_model_args(model).get('min_img_size', least))
    if image_size is not None and image_size < least:
        raise ModelError(
            f'{name} takes images of {least} pixels at least, not {image_size}. Choose a larger '
            f'--image-size, or pass --model-args.min-img-size {image_size} if the model has that.'
        )
    return model


class Transforms:
    """What is done to images, from Pillow's in RGB to what the network takes.

    Attributes:
        config: timm's data config: input_size, mean, std, interpolation, crop_pct, ...
        min_side: Shorter side in pixels below which an evaluation loses detail; see `images.decode`.

    Raises:
        ModelError: The model takes no images of three channels, or none of that size.
    """

    def __init__(self, model: TimmModel, image_size: int | None = None) -> None:
        channels = get_model_input_config(model)['input_size'][0]
        if channels != 3:
            raise ModelError(f'The model takes {channels} channels; images have three.')
        try:
            self.config = resolve_input_data_config(model, {'img_size': image_size})
        except ValueError as e:
            raise ModelError(f'{e} Choose that --image-size, or pass --model-args.img-size {image_size}.') from e
        self.min_side = math.ceil(max(self.config['input_size'][1:]) / self.config['crop_pct'])

    def evaluation(self) -> Callable[[Any], Tensor]:
        """timm's own."""
        return create_transform(**self.config)

    def training(self, scale: tuple[float, float], **augmentation: Any) -> Callable[[Any], Tensor]:
        """timm's, with a random crop of a share of the area in `scale`, and its arguments for the rest."""
        config = {name: value for name, value in self.config.items() if name not in ('crop_pct', 'crop_mode')}
        return create_transform(**config, is_training=True, scale=scale, **augmentation)

    def min_side_for(self, scale: tuple[float, float]) -> int:
        """Shorter side in pixels below which a random crop would be enlarged."""
        return math.ceil(max(self.config['input_size'][1:]) / math.sqrt(scale[0]))


class ProbeHead(nn.Module):
    """Dropout and the classifier of a model, on features [B, D].

    Raises:
        ModelError: The model ends in something else than one linear layer.
    """

    def __init__(self, model: TimmModel, drop_rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc = _linear_classifier(model)  # the model's own: what it learns is in the model

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
    """The tensors that features depend on.

    Raises:
        ModelError: The model ends in something else than one linear layer.
    """
    own = {tensor.data_ptr() for tensor in _linear_classifier(model).state_dict().values()}
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.data_ptr() not in own}


def features_of(model: TimmModel, images: Tensor) -> Tensor:
    """What the classifier is given, [B, D]."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def set_mode(module: nn.Module, frozen_batch_norm: bool) -> None:
    """Training mode, in which batch normalization may keep to its moving statistics and leave them as they are.

    Its scale and offset are trained all the same, as in Keras with `training=False`. To be called after anything that
    has changed the mode.
    """
    module.train()
    if frozen_batch_norm:
        for layer in module.modules():
            if isinstance(layer, BATCH_NORMS):
                layer.eval()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; each layer has its own mode again afterwards."""
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
        model: The model in its final state; it is moved to the CPU.
        data_config: Preparation of the images, as `Transforms.config`.
        class_names: Names in the order of the logits.
        multi_label: Whether an image has any number of labels; the pipelines of transformers need to be told.
        base_model: Hub id that the weights came from.
    """
    built_with = getattr(model, '_model_args', {})  # by timm's factory; few models keep their rates themselves
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
    model = model.to('cpu', memory_format=torch.contiguous_format)  # as files have them
    write_model(directory, model, model_config, rates, config)


def hub_id(model: TimmModel) -> str | None:
    """The repository that a pretrained model's weights come from, None if there is none."""
    config = model.pretrained_cfg
    name = str(config.get('hf_hub_id') or '').partition('@')[0]
    if name.endswith('/'):  # timm's own are named by the model
        tag = config.get('tag')
        name += config['architecture'] + (f'.{tag}' if tag else '')
    return name or None
