"""The head of Xception: global pooling, optional layers on the pooled features, dropout, logistic regression.

A first layer 'flatten' replaces the pooling. It keeps the features of each position, and fixes the size of the maps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import SelectAdaptivePool2d, create_act_layer, get_act_layer
from torch import Tensor, nn

from .layers import BN_MOMENTUM, init_weights

HEAD_LAYERS = ('fc', 'bn', 'act', 'drop', 'flatten')

HeadLayer = Mapping[str, Any]


def head_layer_names(layers: Sequence[HeadLayer]) -> list[str]:
    """Names of the head's layers in the network, numbered by kind: fc1, act1, fc2, ..."""
    kinds = [next(kind for kind in HEAD_LAYERS if kind in layer) for layer in layers]
    return [f'{kind}{kinds[:i].count(kind) + 1}' for i, kind in enumerate(kinds)]


class FlattenMap(nn.Module):
    """Flattens feature maps [B, C, H, W] of one size to [B, H * W * C], in the order of Keras' Flatten.

    Args:
        size: Height and width of the maps.

    Raises:
        ValueError: The maps have another size.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, H * W * C]
        if x.shape[2:] != self.size:
            raise ValueError(
                f'This head takes feature maps of {self.size[0]}x{self.size[1]}, not {x.shape[2]}x{x.shape[3]}. '
                f'Resize the images to the size of the training images.'
            )
        return x.permute(0, 2, 3, 1).flatten(1)

    def extra_repr(self) -> str:
        return f'size={self.size}'


class Head(nn.Module):
    """Global pooling, optional layers on the pooled features, dropout, logistic regression (logits).

    Attributes:
        flattens: Whether the head keeps the features of each position instead of pooling them.
        num_features: Number of input features of the classifier.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str,
        layers: Sequence[HeadLayer],
        drop_rate: float,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.layers = tuple(dict(layer) for layer in layers)
        self.drop = nn.Dropout(drop_rate)
        self._build(num_classes, pool_type, device=device, dtype=dtype)

    def _build(self, num_classes: int, pool_type: str, device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        layers = self.layers if pool_type else ()
        self.flattens = bool(layers) and 'flatten' in layers[0]
        self.global_pool = _pooling('' if self.flattens else pool_type)
        self.global_pool.pool_type = pool_type  # as in the arguments, because timm saves this
        width = self.in_features * self.global_pool.feat_mult()
        self.fc_layers = nn.Sequential()
        for name, layer in zip(head_layer_names(layers), layers):
            if 'flatten' in layer:
                self.fc_layers.add_module(name, FlattenMap(layer['flatten']))
                width *= layer['flatten'][0] * layer['flatten'][1]
            elif 'fc' in layer:
                self.fc_layers.add_module(name, nn.Linear(width, layer['fc'], bias=layer.get('bias', True), **dd))
                width = layer['fc']
            elif 'bn' in layer:
                momentum = 1 - layer['momentum'] if 'momentum' in layer else BN_MOMENTUM
                self.fc_layers.add_module(name, nn.BatchNorm1d(width, eps=layer['bn'], momentum=momentum, **dd))
            elif 'act' in layer:
                self.fc_layers.add_module(name, _activation(layer['act']))
            else:
                self.fc_layers.add_module(name, nn.Dropout(layer['drop']))
        self.num_features = width
        self._build_classifier(num_classes, **dd)
        self.fc_layers.apply(init_weights)
        self.train(self.training)

    def _build_classifier(self, num_classes: int, device=None, dtype=None) -> None:
        self.fc: nn.Module = nn.Identity()
        if num_classes > 0:
            self.fc = nn.Linear(self.num_features, num_classes, device=device, dtype=dtype)
        self.fc.apply(init_weights).train(self.training)

    def reset(
        self, num_classes: int, pool_type: str | None = None, in_features: int | None = None, device=None, dtype=None
    ) -> None:
        """Replaces the classifier. Layers before it are replaced only if they do not fit the new pooling or features.

        Args:
            num_classes: Width of the logits; 0 for no classifier.
            pool_type: Kind of pooling; None keeps it. '' also removes the layers before the classifier, because they
                take pooled features. Any other kind removes a layer 'flatten' and all after it.
            in_features: Number of features after pruning; None keeps it. Another number removes the layers before the
                classifier, because they do not fit.
        """
        dd = {'device': device, 'dtype': dtype}
        old = self.global_pool.pool_type
        changed = pool_type not in (None, old)
        pool_type = old if pool_type is None else pool_type
        if (in_features is not None and in_features != self.in_features) or (changed and self.flattens):
            self.in_features, self.layers = in_features or self.in_features, ()
            self._build(num_classes, pool_type, **dd)
        elif _pooling(old).feat_mult() != _pooling(pool_type).feat_mult() or bool(old) != bool(pool_type):
            self._build(num_classes, pool_type, **dd)
        else:
            if changed:
                self.global_pool = _pooling(pool_type).train(self.training)
            self._build_classifier(num_classes, **dd)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # [B, in_features, H, W]
        x = self.global_pool(x)  # [B, pooled features], or [B, C, H, W] without pooling or for a layer 'flatten'
        x = self.drop(self.fc_layers(x))  # [B, num_features]
        return x if pre_logits else self.fc(x)  # [B, num_classes]


def _activation(name: Any) -> nn.Module:
    return nn.Softmax(dim=1) if name == 'softmax' else create_act_layer(name, inplace=True)  # timm has no softmax


def _pooling(pool_type: str) -> SelectAdaptivePool2d:
    return SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))


def is_act_layer(act_layer: Any) -> bool:
    """Whether `act_layer` is a name in timm or a class."""
    try:
        return callable(get_act_layer(act_layer))
    except KeyError:
        return False


def are_head_layers(layers: Sequence[Any]) -> bool:
    """Whether `Head` supports all layers and their values. Only the first can be 'flatten'."""
    return all(map(is_head_layer, layers)) and not any('flatten' in layer for layer in layers[1:])


def is_head_layer(layer: Any) -> bool:
    """Whether `Head` supports the kind and the value of `layer`."""
    if not isinstance(layer, Mapping):
        return False
    keys = sorted(layer)
    if keys in (['fc'], ['bias', 'fc']):
        return isinstance(layer['fc'], int) and layer['fc'] >= 1 and isinstance(layer.get('bias', True), bool)
    if keys in (['bn'], ['bn', 'momentum']):
        return 0 < layer['bn'] < 1 and 0 <= layer.get('momentum', 0) <= 1
    if keys == ['flatten']:
        return len(layer['flatten']) == 2 and all(isinstance(side, int) and side >= 1 for side in layer['flatten'])
    return (keys == ['act'] and (layer['act'] == 'softmax' or is_act_layer(layer['act']))) or (
        keys == ['drop'] and 0 <= layer['drop'] < 1
    )
