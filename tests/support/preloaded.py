"""What the server of forked processes has imported. Their garbage collectors leave all of it aside."""

import gc

import finetune  # noqa: F401

gc.collect()
gc.freeze()
