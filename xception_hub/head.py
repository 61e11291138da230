"""The head of Xception: global pooling, optional layers on the pooled features, dropout, logistic regression."""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import SelectAdaptivePool2d, create_act_layer
from torch import Tensor, nn

from .layers import BN_MOMENTUM, init_weights

HEAD_LAYERS = ('fc', 'bn', 'act', 'drop')

HeadLayer = Mapping[str, Any]


def head_layer_names(layers: Sequence[HeadLayer]) -> list[str]:
    """Names of the head's layers in the network, numbered by kind: fc1, act1, fc2, ..."""
    kinds = [next(kind for kind in HEAD_LAYERS if kind in layer) for layer in layers]
    return [f'{kind}{kinds[:i].count(kind) + 1}' for i, kind in enumerate(kinds)]


class Head(nn.Module):
    """Global pooling, optional layers on the pooled features, dropout, logistic regression (logits).

    Attributes:
        num_features: Number of features that the classifier takes.
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
        self.global_pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
        width = self.in_features * self.global_pool.feat_mult()
        self.fc_layers = nn.Sequential()
        layers = self.layers if pool_type else ()
        for name, layer in zip(head_layer_names(layers), layers):
            if 'fc' in layer:
                self.fc_layers.add_module(name, nn.Linear(width, layer['fc'], bias=layer.get('bias', True), **dd))
                width = layer['fc']
            elif 'bn' in layer:
                momentum = 1 - layer['momentum'] if 'momentum' in layer else BN_MOMENTUM
                self.fc_layers.add_module(name, nn.BatchNorm1d(width, eps=layer['bn'], momentum=momentum, **dd))
            elif 'act' in layer:
                self.fc_layers.add_module(name, create_act_layer(layer['act'], inplace=True))
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
        """Replaces the classifier, and the layers before it only if they do not fit the new pooling or features.

        Args:
            num_classes: Width of the logits; 0 for no classifier.
            pool_type: Kind of pooling; None keeps it. '' also removes the layers before the classifier, because they
                take pooled features.
            in_features: Number of features after pruning; None keeps it. Another number removes the layers before the
                classifier, because they do not fit.
        """
        dd = {'device': device, 'dtype': dtype}
        old = self.global_pool
        pool_type = old.pool_type if pool_type is None else pool_type
        new = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
        if in_features is not None and in_features != self.in_features:
            self.in_features, self.layers = in_features, ()
            self._build(num_classes, pool_type, **dd)
        elif old.feat_mult() != new.feat_mult() or bool(old.pool_type) != bool(pool_type):
            self._build(num_classes, pool_type, **dd)
        else:
            self.global_pool = new.train(self.training)
            self._build_classifier(num_classes, **dd)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)  # [B, 2048]
        x = self.drop(self.fc_layers(x))  # [B, num_features]
        return x if pre_logits else self.fc(x)  # [B, num_classes]


def is_head_layer(layer: Any) -> bool:
    """Whether `layer` is of a kind that `Head` knows, with a possible value."""
    if not isinstance(layer, Mapping):
        return False
    keys = sorted(layer)
    if keys in (['fc'], ['bias', 'fc']):
        return isinstance(layer['fc'], int) and layer['fc'] >= 1 and isinstance(layer.get('bias', True), bool)
    if keys in (['bn'], ['bn', 'momentum']):
        return 0 < layer['bn'] < 1 and 0 <= layer.get('momentum', 0) <= 1
    return keys == ['act'] or (keys == ['drop'] and 0 <= layer['drop'] < 1)
