"""python -m conversion.publish DIR org/name --dry-run

Publishes a converted or a fine-tuned directory on the Hugging Face Hub, in one commit: model.safetensors, config.json,
the model card, and parity.json if there is one; if not, the repository's is removed. What is there isn't sent again.
"""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from xception_hub.directory.publish import CARD_FILE, MESSAGE, describe, make_upload, send
from xception_hub.errors import CardError, PublishError

app = App(name='python -m conversion.publish', help=__doc__, version_flags=[])


@app.default
def main(
    directory: Path,
    repo_id: str,
    /,
    *,
    dry_run: Annotated[bool, Parameter(negative='')] = False,
    private: Annotated[bool, Parameter(negative='')] = False,
    revision: str | None = None,
    license: str | None = None,
    message: str = MESSAGE,
) -> None:
    """Publishes DIRECTORY as the model REPO_ID of the Hugging Face Hub.

    Args:
        directory: What `python -m conversion.convert` wrote, or a fine-tuned model in the same form.
        repo_id: The repository, org/name. It is created if it doesn't exist.
        dry_run: Show what would be done, and send nothing. Needs no token.
        private: Create the repository as a private one.
        revision: A branch instead of main; created if it doesn't exist.
        license: The licence of the weights, in the Hub's words: apache-2.0, mit, other, ...
        message: Of the commit.
    """
    try:
        plan = make_upload(directory, repo_id, revision, license)
        if plan.remote.problem and not dry_run:
            raise plan.remote.problem
        print(describe(plan))
        if dry_run:
            print(f'\n{CARD_FILE}:\n\n{plan.card}\nDry run: nothing was sent.')
            return
        published = send(plan, private, message)
    except (CardError, PublishError) as e:
        sys.exit(f'error: {e}')
    if published.commit_url:
        print(f'\nPublished: {published.commit_url}')
    else:
        print('\nNothing to do: the repository holds all of this.')
    print(f"\nimport timm, xception_hub\nmodel = timm.create_model('{plan.model_name}', pretrained=True)")


if __name__ == '__main__':
    app()
