"""The picture of a proof: how far two networks are apart after each module."""

from pathlib import Path

from .parity import Parity


def draw(parity: Parity, path: Path) -> str:
    """Draws the relative difference after each module, a line for each size, with the tolerance.

    Returns:
        Where it was drawn, or why it wasn't.
    """
    try:
        import matplotlib
    except ImportError as e:
        return f'Not drawn: {e}.'
    matplotlib.use('Agg')
    from matplotlib import pyplot

    proofs = sorted((proof for proof in parity.proofs if len(proof.differences) > 1), key=lambda proof: proof.size)
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout='constrained')
    for proof in proofs:
        values = [max(value, 1e-17) for value in proof.differences.values()]
        axes.plot(list(proof.differences), values, marker='o', markersize=4, label=f'{proof.size[0]}x{proof.size[1]}')
    axes.axhline(proofs[0].tolerance, color='#d6453d', linestyle='--', label='tolerance')
    conditions = f'{proofs[0].dtype}, against {parity.reference}, on {proofs[0].images}'
    axes.set_title(f'Difference from Keras after each module\n{conditions}', fontsize='medium')
    axes.set(yscale='log', ylabel='relative L2 difference')
    for label in axes.get_xticklabels():
        label.set(rotation=45, rotation_mode='anchor', ha='right')
    axes.grid(axis='y', alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(title='pixels', frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return f'Drawn: {path}'
