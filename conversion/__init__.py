"""Keras weights in, verified safetensors out. Run from a clone: `python -m conversion.convert SOURCE -o DIR`.

    names.py      the one name table: Keras' layers, ours, and the axes between them
    hdf5.py       arrays from an HDF5 file, without following it anywhere else
    keras_file.py what a file holds: the archive's config, or the official release's layers
    structure.py  the network and its head in a Keras config
    port.py       a file becomes an Xception
    reference.py  Keras itself, as the oracle
    verify.py     both networks side by side, flow by flow
    convert.py    the command

Each imports only those above it. Nothing here is imported by `xception_hub`.
"""
