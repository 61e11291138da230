"""Xception and the networks that the paper compares it with, by name: timm's pretrained cfgs and entrypoints.

Each name is `xception_hub.Xception` with the arguments in its function. Only `xception_paper` and
`xception_paper_pyramid`, which is the same network, have pretrained weights: none of the others were published.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from .layers import MIN_IMG_SIZE
from .network import Xception
from .pyramid import PyramidNet, XceptionPyramid
from .weights.pretrained import build_model

FC_WIDTHS = (4096, 4096)
JFT_CLASSES = 17_000  # an image has any number of them


def base_cfg(**kwargs: Any) -> dict[str, Any]:
    """What timm has to know of the network and its images, which are prepared as by keras.applications."""
    return {
        'num_classes': 1000,
        'input_size': (3, 299, 299),
        'min_input_size': (3, MIN_IMG_SIZE, MIN_IMG_SIZE),
        'pool_size': (10, 10),
        'crop_pct': 0.8975,  # timm's for 299 pixels
        'interpolation': 'bicubic',
        'mean': (0.5, 0.5, 0.5),
        'std': (0.5, 0.5, 0.5),
        'first_conv': 'stem.conv1',
        'classifier': 'head.fc',
        'paper_name': 'Xception: Deep Learning with Depthwise Separable Convolutions',
        'paper_ids': 'arXiv:1610.02357',
        **kwargs,
    }


KERAS_CFG = base_cfg(
    hf_hub_id='smp-hub/xception.imagenet@01cfaf27c11353b1f0c578e7e26d2c000ea91049',
    hf_hub_filename='model.safetensors',
    url='https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/xception-43020ad28.pth',
    license='apache-2.0',
    origin_url='https://keras.io/api/applications/xception/',
)

default_cfgs = generate_default_cfgs(
    {
        'xception_paper.keras_in1k': KERAS_CFG,
        'xception_paper_pyramid.keras_in1k': KERAS_CFG,
        'xception_paper_fc.untrained': base_cfg(),
        'xception_paper_no_residual.untrained': base_cfg(),
        'xception_paper_mid_relu.untrained': base_cfg(),
        'xception_paper_mid_elu.untrained': base_cfg(),
        'xception_paper_jft.untrained': base_cfg(num_classes=JFT_CLASSES),
        'xception_paper_jft_fc.untrained': base_cfg(num_classes=JFT_CLASSES),
    }
)


def create_xception(variant: str, pretrained: bool, given: dict[str, Any], **variant_args: Any) -> nn.Module:
    """The network of a name, which stands for `variant_args`; what is given comes before them."""
    given.setdefault('feature_cfg', dict(flatten_sequential=True))
    return build_model(Xception, variant, pretrained, variant_args, **given)


@register_model
def xception_paper(pretrained: bool = False, **kwargs) -> nn.Module:
    """Xception of arXiv:1610.02357 as Keras computes it; 22,855,952 parameters, 299x299 pixels scaled to [-1, 1].

    Args:
        pretrained: Load the weights that Keras publishes, ImageNet-1k, from the first source that has them.
        **kwargs: Arguments of `xception_hub.Xception` and of `timm.create_model`.

    Returns:
        The network; its output are logits [B, num_classes].
    """
    return create_xception('xception_paper', pretrained, kwargs)


@register_model
def xception_paper_pyramid(pretrained: bool = False, **kwargs) -> nn.Module:
    """The same network for decoders: its feature maps are padded to ceil(size / reduction), see `PyramidNet`."""
    kwargs.setdefault('feature_cfg', dict(flatten_sequential=True, feature_cls=PyramidNet))
    return build_model(XceptionPyramid, 'xception_paper_pyramid', pretrained, {}, **kwargs)


@register_model
def xception_paper_fc(pretrained: bool = False, **kwargs) -> nn.Module:
    """With two fully connected layers of 4096 units before the classifier.

    They are optional in figure 5, and the paper has them on JFT alone: it reports no such network on ImageNet.
    """
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
