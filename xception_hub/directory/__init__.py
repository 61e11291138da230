"""Writing, describing and publishing a model directory, without Keras and without the code that trains."""
