"""Writing, describing and publishing a model directory. Nothing here needs Keras or training."""
