"""Keras weights in, verified safetensors out. Run from a clone: `python -m conversion.convert SOURCE -o DIR`.

    names.py          the one name table: Keras' layers, this network's, and the axes between them
    hdf5.py           arrays out of HDF5 files, which lead nowhere else, read in a process of its own
    weights.py        that process, as the rest of the conversion sees it
    archive.py        a .keras archive as data
    formats.py        what a source is: every file and directory in which Keras has kept an Xception
    layouts.py        where each layer's arrays lie in a weight file
    head.py           what stands around Xception in a Keras model
    structure.py      where Xception is in it
    release.py        the weights that Keras publishes, by name
    port.py           a source becomes an Xception, with every array accounted for
    keras_model.py    an Xception becomes a Keras model
    reference.py      Keras itself, as the oracle
    preprocessing.py  how images were prepared, in Keras' terms and in timm's
    photos.py         photos, and whether both prepare them alike
    consistency.py    a proof that needs no Keras
    parity.py         both networks on the same images, compared after every module
    card.py           the model card of a directory
    output.py         the directory that timm loads
    convert.py        the command
    verify.py         the command that verifies once more, at other sizes and on photos
    publish.py        the command that puts a directory on the Hub
    to_keras.py       the command that goes the other way
    fingerprints.py   the command that made xception_hub/fingerprints.json

Each imports only those above it. Nothing here is imported by `xception_hub`.
"""
