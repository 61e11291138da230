"""The files of a Space, a page on the Hugging Face Hub: `xception-hub demo` for a published model."""

from importlib.metadata import PackageNotFoundError, version

from .card import PROJECT

CARD = """\
---
title: {title}
sdk: gradio
{version}app_file: app.py
models:
- {repo_id}
---

A demo of [{repo_id}](https://huggingface.co/{repo_id}): it classifies photos and shows heat maps.
"""
APP = """\
from xception_hub.inference.demo import launch

launch({model_name!r})
"""
REQUIREMENTS = f'xception-hub[demo] @ git+https://github.com/{PROJECT}\n'


def space_files(repo_id: str, model_name: str) -> dict[str, bytes]:
    """Name -> content of each file.

    Args:
        repo_id: Repository of the model, 'org/name'.
        model_name: Name to pass to `timm.create_model`.
    """
    try:
        gradio = f'sdk_version: {version("gradio")}\n'  # the installed version, which the page was tested with
    except PackageNotFoundError:
        gradio = ''
    title = repo_id.partition('/')[2]
    card = CARD.format(title=title, version=gradio, repo_id=repo_id)
    texts = {'README.md': card, 'app.py': APP.format(model_name=model_name), 'requirements.txt': REQUIREMENTS}
    return {name: text.encode() for name, text in texts.items()}
