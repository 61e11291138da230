"""Labelled photos: found, read, split, scanned."""
