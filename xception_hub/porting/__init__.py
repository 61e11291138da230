"""Keras files in, a proven network out, and back; the scripts in `conversion/` put these parts together.

    names             the one name table: Keras' layers, this network's, and the axes between them
    hdf5              arrays out of HDF5 files, which lead nowhere else, read in a process of its own
    weight_file       that process, as the rest of the package sees it
    formats           what a source is: every file and directory in which Keras has kept an Xception, opened as data
    layer_settings    the settings of Keras' layers, in one notation; what of a file is refused
    graph             the layers and wires of a config, models within models opened
    array_places      where each layer's arrays lie in a weight file
    figure5           Keras' own Xception as a config states it, and the comparison of a file with it
    preprocessing     how images were prepared, in Keras' terms and in timm's, and photos prepared so
    keras_head        what stands around Xception in a Keras model
    structure         where Xception is in it
    preset            the same of a KerasHub preset, from its JSON files
    release           the weights that Keras publishes, by name
    port              a source becomes an Xception, with every array accounted for
    keras_model       an Xception becomes a Keras model, and a model directory a Keras file
    reference         Keras itself, as the oracle
    consistency       a proof that needs no Keras
    parity            both networks on the same images, compared after every module
    output            the directory that timm loads, and the report of its proofs
    declared          what a user declares of a file, beside what the file says
    plot              the picture of a proof

Each imports only those above it. Needs the `keras` extra; `import xception_hub` does not import it.
"""
