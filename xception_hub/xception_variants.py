"""The networks that the paper compares Xception with, by name: `timm.create_model('xception_paper_no_residual')`.

Each is `xception_paper` with the arguments in its function, and has no pretrained weights: none were published.
"""

from timm.models import generate_default_cfgs, register_model
from torch import nn

from .xception_paper import base_cfg, create_xception

__all__ = [
    'xception_paper_fc',
    'xception_paper_jft',
    'xception_paper_jft_fc',
    'xception_paper_mid_elu',
    'xception_paper_mid_relu',
    'xception_paper_no_residual',
]

FC_WIDTHS = (4096, 4096)
JFT_CLASSES = 17_000  # an image has any number of them

default_cfgs = generate_default_cfgs(
    {
        'xception_paper_fc.untrained': base_cfg(),
        'xception_paper_no_residual.untrained': base_cfg(),
        'xception_paper_mid_relu.untrained': base_cfg(),
        'xception_paper_mid_elu.untrained': base_cfg(),
        'xception_paper_jft.untrained': base_cfg(num_classes=JFT_CLASSES),
        'xception_paper_jft_fc.untrained': base_cfg(num_classes=JFT_CLASSES),
    }
)


@register_model
def xception_paper_fc(pretrained: bool = False, **kwargs) -> nn.Module:
    """With two fully connected layers of 4096 units before the classifier, as figures 5, 7 and 8 have it."""
    return create_xception('xception_paper_fc', pretrained, kwargs, fc_widths=FC_WIDTHS)


@register_model
def xception_paper_no_residual(pretrained: bool = False, **kwargs) -> nn.Module:
    """Figure 9: without residual connections."""
    return create_xception('xception_paper_no_residual', pretrained, kwargs, residual=False)


@register_model
def xception_paper_mid_relu(pretrained: bool = False, **kwargs) -> nn.Module:
    """Figure 10: with ReLU between depthwise and pointwise convolution."""
    return create_xception('xception_paper_mid_relu', pretrained, kwargs, mid_act_layer='relu')


@register_model
def xception_paper_mid_elu(pretrained: bool = False, **kwargs) -> nn.Module:
    """Figure 10: with ELU between depthwise and pointwise convolution."""
    return create_xception('xception_paper_mid_elu', pretrained, kwargs, mid_act_layer='elu')


@register_model
def xception_paper_jft(pretrained: bool = False, **kwargs) -> nn.Module:
    """Table 2 and figure 7: for JFT's 17,000 classes.

    An image has any number of them: the logits [B, 17000] are for the sigmoid (binary cross-entropy).
    """
    return create_xception('xception_paper_jft', pretrained, kwargs)


@register_model
def xception_paper_jft_fc(pretrained: bool = False, **kwargs) -> nn.Module:
    """Table 2 and figure 8: `xception_paper_jft` with two fully connected layers of 4096 units."""
    return create_xception('xception_paper_jft_fc', pretrained, kwargs, fc_widths=FC_WIDTHS)
