"""One tool: `xception-hub COMMAND`, also `python -m xception_hub COMMAND`."""

import sys

from cyclopts import App

from . import __version__
from .weights import fingerprints, sources

app = App(
    name='xception-hub',
    help='Xception of arXiv:1610.02357 for timm, exactly as Keras computes it.',
    version=__version__,
)
app.register_install_completion_command()


@app.command
def verify(source: str, /) -> None:
    """Counts how many of the backbone's 234 tensors are those that Keras publishes.

    Ends with status 0 if all are, up to the eps compensation; with 1 if not, or if SOURCE can't be read.

    Args:
        source: A hub id (org/name or org/name@revision), an address, a file or a directory.
    """
    try:
        verification = sources.verify(source)
    except Exception as e:  # networks fail in ways that have no class in common
        sys.exit(f'error: {source}: {e}')
    total = len(fingerprints.genuine()['sha256'])
    rows = {
        'bit-identical': verification.identical,
        'equal up to the eps compensation': verification.compensated,
        'different': verification.different,
        'missing': verification.missing,
    }
    print(f'{source}: {total} tensors of the backbone')
    for label, names in rows.items():
        print(f'{len(names):5}  {label}' + (f': {names[0]}, ...' if names and 'identical' not in label else ''))
    if not verification.is_genuine:
        sys.exit('not the weights that Keras publishes')
    print('The backbone is that of Keras. What is not verified: the classifier, of which there is no fingerprint.')
