"""A model directory: written, described by a card, published. Knows neither Keras nor training."""
