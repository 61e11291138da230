"""Labelled photos: one table of image, label, split and group; read, understood, split.

    data_settings, known_names       what can be asked for, and what names of splits and columns mean
    folders, table              folders of photos, and any dataset, as tables with a row for each image
    columns, paths              which columns hold images and labels, what their cells mean, and where the files are
    splits                      training and validation, shares, groups and folds
    labelled                    `load`: all of it, from the settings to what a model is trained on
    seen                        which images a model was trained and measured on
    bad_images                  each image looked at once: what cannot be used, and what occurs twice

What cannot be found or read, or can be read in several ways, is a `DataError` that names the options.

An odd layout is a line of Python: `load(DataSettings(dataset=photo_table(files, label=parent_label)))`.
"""
