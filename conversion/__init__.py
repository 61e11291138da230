"""Recipes on top of `xception_hub.porting`, to read from top to bottom and to change.

python -m conversion.convert       converts a Keras file into a directory that timm loads, after a proof of parity
python -m conversion.prove         repeats the proof at other sizes and on photos
python -m conversion.to_keras      converts a model directory into a Keras file
"""
