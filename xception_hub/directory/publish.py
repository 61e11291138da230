"""xception-hub publish DIR org/name --dry-run

Publishes a model directory on the Hugging Face Hub, in one commit: model.safetensors, config.json, the model card,
parity.json, and images.json with digests of the images that the model was trained on. If the directory has no
parity.json or images.json, that of the repository is removed.
"""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from xception_hub.errors import exits_with_message, printable_lines

from .upload import CARD_FILE, MESSAGE, describe, make_space, make_upload, send

app = App(name='python -m xception_hub.directory.publish', help=__doc__, version_flags=[])


@app.default
@exits_with_message()
def main(
    directory: Path,
    repo_id: str,
    /,
    *,
    dry_run: Annotated[bool, Parameter(negative='')] = False,
    private: Annotated[bool, Parameter(negative='')] = False,
    space: Annotated[bool, Parameter(negative='')] = False,
    revision: str | None = None,
    license: str | None = None,
    message: str = MESSAGE,
) -> None:
    """Publish DIRECTORY as the model REPO_ID of the Hugging Face Hub.

    Args:
        directory: Model directory that `xception-hub convert` or `finetune` wrote.
        repo_id: Repository org/name. It is created if it does not exist.
        dry_run: Print the planned changes and the model card, and upload nothing. No token is needed.
        private: Create a private repository. By default it is public.
        space: Publish a demo page, too: a Space of the same name, which runs `xception-hub demo`. The Space of a
            private model needs the secret HF_TOKEN.
        revision: Branch to publish on; it is created if it does not exist. By default main.
        license: Licence of the weights, as the Hub spells it: apache-2.0, mit, other, ... By default the card states
            that no licence was given.
        message: Commit message.
    """
    model = make_upload(directory, repo_id, revision, license)
    for upload in (model, make_space(model)) if space else (model,):
        print(printable_lines(describe(upload)))
        if dry_run:
            card = upload.contents[CARD_FILE]
            print(f'\n{CARD_FILE}:\n\n{card.decode() if isinstance(card, bytes) else card}\n')
        else:
            commit_url = send(upload, private, message)
            print(
                f'\nPublished: {commit_url}\n' if commit_url else '\nNothing to do: the repository has all of this.\n'
            )
    if dry_run:
        print('Dry run: nothing was sent.')
    else:
        print(f"import timm, xception_hub\nmodel = timm.create_model('{model.model_name}', pretrained=True)")


if __name__ == '__main__':
    app()
