"""Weights: the places they come from, the published torch layouts, and the verification of each tensor."""
