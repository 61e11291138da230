"""Labelled photos: found, read, split, decoded and scanned.

split_names, tables, columns     what names of splits, cells and columns of tables mean
folders, reading                 what folders mean, and any dataset as tables
image_paths, classes             from columns to image files, and to numbers of classes
stratified, dataset              a held-out share; the labelled images of a dataset
items, scan                      single images, decoded; what is wrong with all of them
"""
