"""timm models by name, and the preparation of their images. Inference and fine-tuning build the same."""

import difflib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_input_data_config
from timm.models import get_model_args, get_model_input_config, is_model, is_model_in_modules
from torch import Tensor, nn

import xception_hub  # noqa: F401  registers the model

from ..errors import CheckpointError, ModelError, in_one_line, listed
from ..images import ImageSource, open_image
from ..weights.arguments import network_arguments
from ..weights.sources import CONFIG_FILE, hub_or_cache, source_of


class TimmModel(nn.Module):
    """The attributes of timm's models, for type checkers. No model is of this class."""

    num_classes: int
    num_features: int
    pretrained_cfg: dict[str, Any]
    forward_features: Callable[[Tensor], Tensor]  # images [B, 3, H, W] -> maps [B, C, h, w], or what a model has
    forward_head: Callable[..., Tensor]  # maps, pre_logits=False -> logits [B, classes]; pre_logits=True -> [B, D]
    get_classifier: Callable[[], nn.Module]
    reset_classifier: Callable[[int], None]
    set_grad_checkpointing: Callable[[bool], None]
    grey_maximum: int | None  # value that is white in grey images of more than 8 bits; None for the default


NAMES_CLASSES = ('local-dir:', 'hf-hub:')  # sources with a config.json, which may name the classes


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
            f'{name} cannot be downloaded: {e} Without a network, pass --model local-dir:DIR with a local directory, '
            f'or --no-pretrained.'
        ) from e
    except Exception as e:  # timm, the Hub and the network raise errors of many types
        if unknown := _unknown(name):
            raise ModelError(unknown) from e
        directory = Path(name.removeprefix('local-dir:'))
        if (directory / 'checkpoints').is_dir():
            raise ModelError(
                f'{directory} holds a run that is not finished. Go on with it: xception-hub finetune --config '
                f'{directory}/settings.yaml.'
            ) from e
        if name.startswith('local-dir:') and not (directory / CONFIG_FILE).is_file():
            raise ModelError(
                f'{directory} is no model directory: it has no {CONFIG_FILE}. Pass a directory that finetune or '
                f'convert wrote, or a name from timm.list_models().'
            ) from e
        raise ModelError(f'{name} cannot be built: {in_one_line(_refusal(name) or e)}') from e
    if num_classes not in (None, model.pretrained_cfg['num_classes']):
        start_equal(model)
    model.grey_maximum = _grey_maximum(recorded_of(name) if pretrained else {}, name)
    least = (model.pretrained_cfg.get('min_input_size') or (0, 0, 0))[1]
    least = min(least, get_model_args(model).get('min_img_size', least))
    if image_size is not None and image_size < least:
        raise ModelError(
            f'{name} takes images of {least} pixels at least, not {image_size}. Choose a larger '
            f'--image-size, or pass --model-args.min-img-size {image_size} if the model has that argument.'
        )
    return model


def recorded_of(name: str) -> dict[str, Any]:
    """The config.json of a directory or a repository; {} of a name that timm knows.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        return source_of(name).read_config() if name.startswith(NAMES_CLASSES) else {}
    except Exception as e:  # errors of files, of the Hub and of the network have no common class
        raise ModelError(f'{name} cannot be read: {in_one_line(e)}') from e


def _unknown(name: str) -> str | None:
    """The error about a name without a source that timm does not know, with similar names and directories."""
    if ':' in name or is_model(name):
        return None
    directories = [str(config.parent) for config in Path(name).parent.glob(f'*/{CONFIG_FILE}')]
    near = difflib.get_close_matches(name, [*timm.list_models(), *directories], 3)
    similar = f' Similar names are {listed(near)}.' if near else ''
    return f'There is no model {name!r}.{similar} Pass a model directory, a name from timm.list_models(), or hf-hub:ID.'


def _refusal(name: str) -> CheckpointError | None:
    """The error about arguments in the config.json of this project's network, which timm does not check."""
    try:
        config = recorded_of(name)
        if is_model_in_modules(config.get('architecture', ''), ['xception_paper']):
            network_arguments(config.get('model_args') or {}, CONFIG_FILE)
    except CheckpointError as e:
        return e
    except ModelError:
        pass
    return None


def _grey_maximum(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get('grey_maximum')
    if value is not None and (type(value) is not int or value < 1):
        raise ModelError(f'The config.json of {name} has grey_maximum {value!r} instead of a whole number > 0.')
    return value


def open_model(name: str | os.PathLike[str]) -> tuple[TimmModel, dict[str, Any]]:
    """The pretrained model of a name that timm.create_model takes, or of a directory, and its config.json, if any.

    Raises:
        ModelError: There is no such model.
    """
    name = os.fspath(name)
    if Path(name).is_dir():
        name = f'local-dir:{name}'
    return build(name, None, True, {}, None).eval(), recorded_of(name)


def start_equal(model: TimmModel) -> None:
    """Lets all classes start out equal, with no random preferences to unlearn."""
    if isinstance(classifier := model.get_classifier(), nn.Linear):
        for parameter in classifier.parameters():
            nn.init.zeros_(parameter)


class Transforms:
    """Transforms from a Pillow image in RGB to the network's input [3, H, W].

    Attributes:
        config: timm's data config: input_size, mean, std, interpolation, crop_pct, ...
        grey_maximum: Value that is white in grey images of more than 8 bits, as the model's config.json records it.
        min_side: Shorter side of an image in pixels below which an evaluation loses detail; see `images.open_image`.

    Raises:
        ModelError: The model does not take images of three channels, or of this size.
    """

    def __init__(self, model: TimmModel, image_size: int | None = None) -> None:
        channels = get_model_input_config(model)['input_size'][0]
        if channels != 3:
            raise ModelError(f'The model takes {channels} channels, but images have three. Choose another model.')
        try:
            self.config = resolve_input_data_config(model, {'img_size': image_size})
        except ValueError as e:
            raise ModelError(f'{e} Choose that --image-size, or pass --model-args.img-size {image_size}.') from e
        if image_size is not None:
            _try(model, self.config['input_size'])
        self.grey_maximum: int | None = getattr(model, 'grey_maximum', None)
        self.min_side = math.ceil(max(self.config['input_size'][1:]) / self.config['crop_pct'])

    def open(self, source: ImageSource, max_pixels: int | None = None) -> Image.Image:
        """An image as the model saw those that it was trained on; see `images.open_image`."""
        return open_image(source, self.min_side, self.grey_maximum, max_pixels)

    def evaluation(self) -> Callable[[Any], Tensor]:
        """timm's transform for evaluation, from a Pillow image to [3, H, W]."""
        return create_transform(**self.config)

    def pixels(self) -> Callable[[Any], Tensor]:
        """The transform for evaluation without normalization: to uint8 pixels [3, H, W], a quarter of the bytes."""
        return create_transform(**self.config, normalize=False)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Normalizes uint8 pixels [B, 3, H, W]; the result equals that of `evaluation`, bit by bit."""
        mean, std = (
            pixels.new_tensor(self.config[name], dtype=torch.float32).view(3, 1, 1) for name in ('mean', 'std')
        )
        return pixels.float().div(255).sub(mean).div(std)

    def training(self, scale: tuple[float, float], **augmentation: Any) -> Callable[[Any], Tensor]:
        """timm's transform for training, to [3, H, W]; random crops take a share of the area within `scale`."""
        config = {name: value for name, value in self.config.items() if name not in ('crop_pct', 'crop_mode')}
        return create_transform(**config, is_training=True, scale=scale, **augmentation)

    def min_side_for(self, scale: tuple[float, float]) -> int:
        """Smallest length in pixels of an image's shorter side at which no random crop is enlarged."""
        return math.ceil(max(self.config['input_size'][1:]) / math.sqrt(scale[0]))


def _try(model: TimmModel, size: Sequence[int]) -> None:
    """Raises a ModelError if a model does not take images [3, H, W] of this size."""
    try:
        with evaluating(model):
            model(next(model.parameters()).new_zeros(1, *size))
    except Exception as e:  # of layers, whose reasons are many
        raise ModelError(
            f'The model does not take images of {size[1]} pixels ({e}). Choose another --image-size.'
        ) from e


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
