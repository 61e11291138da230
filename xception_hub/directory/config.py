"""What the config.json of a model directory says of the outputs."""

from typing import Any

# Activations of Keras models whose outputs stand for classes; linear ones are logits, as far as a file says.
OF_CLASSES = ('softmax', 'log_softmax', 'sigmoid', 'linear', 'unknown')


def final_activation_of(config: dict[str, Any]) -> str:
    """What the network that a model was read from applies to its outputs; 'unknown' without a record of it."""
    return (config.get('keras') or config).get('final_activation', 'unknown')
