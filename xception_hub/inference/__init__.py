"""The same function faster, exported, and on many photos."""
