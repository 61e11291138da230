"""What the config.json of a model directory records about the outputs."""

from typing import Any

# Activations of Keras models whose outputs stand for classes. Linear outputs count as logits.
OF_CLASSES = ('softmax', 'log_softmax', 'sigmoid', 'linear', 'unknown')


def final_activation_of(config: dict[str, Any]) -> str:
    """The activation that the original network applies to its outputs; 'unknown' if config.json does not record it."""
    return (config.get('keras') or config).get('final_activation', 'unknown')
