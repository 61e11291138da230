"""timm models for fine-tuning: built for the classes of a dataset, split into two parts, and saved."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..directory.write import label_names_of, write_model
from ..errors import ModelError
from ..weights.pretrained import hidden_layers
from .build import TimmModel, build, recorded_of, start_equal

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def build_for(
    name: str, class_names: Sequence[str], pretrained: bool, args: Mapping[str, Any], image_size: int | None
) -> tuple[TimmModel, list[str]]:
    """Builds a timm model with a classifier for these classes. It keeps the weights of classes that it knows.

    If the model's config.json names some of these classes, all layers before the classifier are kept. If it names other
    classes only, the hidden layers of its head are removed, because they were trained for those classes.

    Returns:
        The model, and the classes whose weights are kept.
    """
    count = len(class_names)
    config = recorded_of(name) if pretrained else {}
    before = label_names_of(config)
    kept = [class_name for class_name in class_names if class_name in before]
    if not kept:
        dropped = dict.fromkeys(hidden_layers(config) if before else (), ())
        model = build(name, count, pretrained, {**args, **dropped}, image_size)
        if before:
            start_equal(model)
        return model, []
    model = build(name, None, True, args, image_size)
    old = model.get_classifier()
    if before == list(class_names):
        return model, kept
    if not isinstance(old, nn.Linear):
        return build(name, count, True, args, image_size), []
    model.reset_classifier(count)
    start_equal(model)
    rows = {class_names.index(class_name): before.index(class_name) for class_name in kept}
    with torch.no_grad():
        for new, trained in zip(model.get_classifier().parameters(), old.parameters()):
            new[[*rows]] = trained[[*rows.values()]]
    return model, kept


class ProbeHead(nn.Module):
    """Dropout and the classifier of a model, see `linear_classifier`: features [B, D] -> logits [B, C]."""

    def __init__(self, model: TimmModel, drop_rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc = linear_classifier(model)  # shared with the model, which so learns with it

    def forward(self, x: Tensor) -> Tensor:  # [B, D] -> [B, C]
        return self.fc(self.drop(x))


def linear_classifier(model: TimmModel) -> nn.Linear:
    """The last layer of a model.

    Raises:
        ModelError: The model does not end in a single linear layer.
    """
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ModelError(
            f'{type(model).__name__} ends in {type(classifier).__name__}, but frozen features need a model that ends '
            f'in one Linear layer. Choose the recipe full.'
        )
    return classifier


def without_classifier(model: TimmModel) -> dict[str, Tensor]:
    """Returns the tensors [...] that the features depend on: all but the classifier's, see `linear_classifier`."""
    own = {tensor.data_ptr() for tensor in linear_classifier(model).state_dict().values()}
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.data_ptr() not in own}


def features_of(model: TimmModel, images: Tensor) -> Tensor:
    """Maps images [B, 3, H, W] to features [B, D], the input of the classifier."""
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


def save(
    directory: Path,
    model: TimmModel,
    data_config: Mapping[str, Any],
    class_names: Sequence[str],
    multi_label: bool,
    base_model: str | None = None,
    grey_maximum: int | None = None,
) -> None:
    """Writes model.safetensors and config.json, from which `timm.create_model('local-dir:...')` builds the model.

    Args:
        directory: An existing directory.
        model: The final model, which is moved to the CPU.
        data_config: timm's data config, as in `Transforms.config`.
        class_names: Names of the classes in the order of the logits.
        multi_label: Whether an image can have any number of labels; pipelines of transformers read it in config.json.
        grey_maximum: Value of white in grey images of more than 8 bits, as in `images.open_image`.
        base_model: Hub id of the weights before training; None for none.
    """
    built_with = getattr(model, '_model_args', {})  # set by timm's factory; few models store their rates
    rates = {name: getattr(model, name, built_with.get(name)) for name in ('drop_rate', 'drop_path_rate')}
    recorded = dict(
        base_model=base_model,
        grey_maximum=grey_maximum,
        problem_type='multi_label_classification' if multi_label else None,
    )
    model_config: dict[str, Any] = dict(label_names=list(class_names), pretrained_cfg=dict(tag=None))
    model_config |= {name: value for name, value in recorded.items() if value}
    keys = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
    config = {key: data_config[key] for key in keys if key in data_config}
    model = model.to('cpu').to(memory_format=torch.contiguous_format)  # the layout of files
    write_model(directory, model, model_config, {name: rate for name, rate in rates.items() if rate}, config)


def hub_id(model: TimmModel) -> str | None:
    """Returns the Hub id of a pretrained model's weights, without their revision; None if they have none."""
    return str(model.pretrained_cfg.get('hf_hub_id') or '').partition('@')[0] or None
