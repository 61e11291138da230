"""Entry points of torch.hub: `torch.hub.load('OWNER/REPO', 'xception_paper', pretrained=True)`."""
dependencies = ['torch', 'timm', 'huggingface_hub', 'safetensors']

from xception_hub.checkpoints import from_checkpoint
from xception_hub.xception_paper import xception_paper
