"""The figures, numbers and experiments of the paper, drawn, counted and trained: `python -m xception_hub.paper`.

Importing this package registers the networks that only the paper needs.
"""

from . import narrow_inception as _registered  # noqa: F401
