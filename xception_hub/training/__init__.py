"""The parts that a fine-tuning is made of, each of which stands alone.

    images.py   image files as a network should see them
    data.py     datasets of labelled images, found, read, checked and split

Needs the `finetune` extra; `import xception_hub` doesn't import it.
"""
