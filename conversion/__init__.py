"""Keras weights in, verified safetensors out. Run from a clone: `python -m conversion.convert SOURCE -o DIR`.

    names.py         the one name table: Keras' layers, this network's, and the axes between them
    hdf5.py          arrays out of an HDF5 file, which leads nowhere else
    archive.py       a .keras archive as data
    structure.py     the network and its head in a Keras config
    port.py          a file becomes an Xception, with every array accounted for
    reference.py     Keras itself, as the oracle
    parity.py        both networks on the same images, compared after every module
    consistency.py   a proof that needs no Keras
    output.py        the directory that timm loads
    convert.py       the command
    verify.py        the command that verifies once more, at other sizes and on photos
    to_keras.py      the command that goes the other way
    fingerprints.py  the command that made xception_hub/fingerprints.json

Each imports only those above it. Nothing here is imported by `xception_hub`.
"""
