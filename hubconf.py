"""Entry points of torch.hub: `torch.hub.load('OWNER/REPO', 'xception_paper', pretrained=True)`."""

dependencies = ['torch', 'timm', 'huggingface_hub', 'safetensors']

from xception_hub.weights.checkpoints import from_checkpoint
from xception_hub.xception_paper import (
    xception_paper,
    xception_paper_fc,
    xception_paper_jft,
    xception_paper_jft_fc,
    xception_paper_mid_elu,
    xception_paper_mid_relu,
    xception_paper_no_residual,
    xception_paper_pyramid,
)
