"""What the config.json of a model directory says of the outputs."""

from typing import Any

# Activations of Keras models whose outputs stand for classes; linear ones are logits, as far as a file says.
OF_CLASSES = ('softmax', 'sigmoid', 'linear', 'unknown')


def final_activation_of(config: dict[str, Any]) -> str:
    """What Keras applies to the outputs of a model that was converted; 'unknown' without a record of it."""
    return (config.get('keras') or {}).get('final_activation', 'unknown')
