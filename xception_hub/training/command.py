"""The command line of finetune.py, which prints its help without the packages that train."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ..errors import ImageError, exits_with_message
from ..interrupt import INTERRUPTED
from .run_directory import SETTINGS_FILE, Interrupted
from .settings import Settings, with_recipe

HELP = """xception-hub finetune --recipe transfer --dataset photos --output DIR

Trains xception_paper, or any timm model, on a Hugging Face dataset or a folder of images, on a CPU, a GPU or many
machines. DIR becomes a model directory for timm, with a report. An interrupted run continues when the same command is
run again, and its final weights are bit-identical. To use several processes, run accelerate launch -m xception_hub
finetune, or in a clone accelerate launch finetune.py.
"""


def command(run: Callable[[Settings], None]) -> App:
    """The command, which begins in `app.meta`.

    Args:
        run: Trains by settings.
    """
    app = App(help=HELP, version_flags=[])
    app['--help'].show = app.meta['--help'].show = False  # otherwise --help shows them in a separate box

    @app.default
    def main(settings: Settings) -> None:
        """Train a timm model on a dataset."""
        try:
            run(settings)
        except ImageError as e:  # drop the traceback of a worker
            raise ImageError(str(e).strip().splitlines()[-1].rpartition('ImageError: ')[2]) from e
        except (Interrupted, KeyboardInterrupt):
            file = settings.output.output / SETTINGS_FILE  # missing if nothing has been trained
            again = f', or: {sys.argv[0]} --config {file}' if file.is_file() else ''
            print(f'\nStopped. To continue, run the same command again{again}', file=sys.stderr)
            sys.exit(INTERRUPTED)

    @app.meta.default
    @exits_with_message()
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)], config: Path | None = None
    ) -> None:
        """Take settings from the command line, else from the YAML file, else from the recipe.

        Args:
            config: YAML file with settings, such as DIR/settings.yaml of another run.
        """
        app.config = with_recipe(tokens, config)
        app(tokens)

    return app
