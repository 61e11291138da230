"""Recipes on top of `xception_hub.porting`, to read from top to bottom and to change.

python -m conversion.convert       a Keras file becomes a directory that timm loads, after a proof of parity
python -m conversion.prove         the proof once more, at other sizes and on photos
python -m conversion.to_keras      a model directory becomes a Keras file
python -m conversion.fingerprints  made xception_hub/weights/fingerprints.json
"""
