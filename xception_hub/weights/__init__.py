"""Weights: any published torch layout read, each tensor proven, and the places where weights come from."""
