"""What the paper states, beside what can be counted and measured here: `python -m xception_hub.paper`.

Importing this package registers the networks that only the paper needs.
"""

from . import narrow_inception as _registered  # noqa: F401
