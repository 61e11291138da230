"""xception-hub to-keras DIR -o model.keras

Builds the Keras model of a model directory. It writes a Keras 3 archive (.keras), or only the weights (.weights.h5).
Before it replaces an existing file, it reads all arrays back and compares them bit by bit. In a clone: python -m
conversion.to_keras.
"""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

import xception_hub  # noqa: F401  registers the model
from xception_hub.errors import exits_with_message
from xception_hub.porting.keras_model import build_keras, write_keras

app = App(name='python -m conversion.to_keras', help=__doc__, version_flags=[])


@app.default
@exits_with_message(OSError, ImportError)
def main(directory: Path, /, *, output: Annotated[Path, Parameter(alias='-o')]) -> None:
    """Write the Keras model of DIRECTORY.

    Args:
        directory: Model directory that `xception-hub convert` or `finetune` wrote.
        output: File to write. Its name must end in .keras or .weights.h5.
    """
    model, network = build_keras(directory)
    count = write_keras(model, network, output)
    print(f'Written: {output}. Read back, its {count} arrays are bit-identical to those of {directory}.')


if __name__ == '__main__':
    app()
