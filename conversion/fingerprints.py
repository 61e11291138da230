"""python -m conversion.fingerprints model.keras > xception_hub/weights/fingerprints.json

Prints the fingerprints of a file's backbone. The file must contain the weights that Keras publishes, unchanged.
"""

import json

from cyclopts import App

from xception_hub.errors import exits_with_message
from xception_hub.porting.port import port
from xception_hub.weights.fingerprints import fingerprint

app = App(name='python -m conversion.fingerprints', help=__doc__, version_flags=[])


@app.default
@exits_with_message()
def main(source: str, /) -> None:
    """Prints JSON.

    Args:
        source: Keras file, as for `python -m conversion.convert`.
    """
    print(json.dumps(fingerprint(port(source).tensors), indent=0))


if __name__ == '__main__':
    app()
