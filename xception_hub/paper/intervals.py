"""Tests claims by the paired differences of runs from several seeds, with t-intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy.special import stdtrit

from .experiments import CLAIMS, EQUAL

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean, and Student's interval around it, which is infinite for a single value."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """The mean of values from independent seeds, with its interval at the level `CONFIDENCE`."""
    mean, count = statistics.mean(values), len(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def top1(found: Mapping[str, Any], name: str) -> dict[int, float]:
    """Seed -> top-1 of the last epoch."""
    return {run['seed']: run['epochs'][-1]['top1'] for run in found['networks'][name]['runs']}


def differences(found: Mapping[str, Any], first: str, second: str) -> list[float]:
    """Top-1 of the first network minus that of the second, from each seed that both have."""
    one, other = top1(found, first), top1(found, second)
    return [one[seed] - other[seed] for seed in one if seed in other]


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """A line for each claim: confirmed, contradicted or undecided. Runs of a seed see the same images."""
    lines = []
    for claim, pair in {**CLAIMS, **EQUAL}.items():
        if not {*pair} <= {*found['networks']} or not (points := differences(found, *pair)):
            continue
        mean, low, high = (100 * value for value in interval(points))
        if not (low > 0 or high < 0):
            verdict = 'undecided'
        elif claim in EQUAL:
            verdict = f'{pair[low < 0]} is better'
        else:
            verdict = 'confirmed' if low > 0 else 'contradicted'
        lines.append(
            f'{claim}: {verdict} ({mean:+.1f} points, {CONFIDENCE:.0%} interval {low:+.1f} to {high:+.1f}, '
            f'{len(points)} seeds)'
        )
    return lines


def table(found: Mapping[str, Any]) -> list[str]:
    """A line for each network: its cost, its learning rate, and its accuracy with the lowest and highest of a seed."""
    names = ('parameters', 'MACs', 'steps/s', 'rate', 'top-1', 'lowest', 'highest')
    rows = [('network', *names)]
    for name, entry in found['networks'].items():
        values = top1(found, name).values()
        images = statistics.median(run['epochs'][-1]['images_per_second'] for run in entry['runs'])
        costs = f'{entry["parameters"]:,}', f'{entry["macs"]:,}', f'{images / found["settings"]["batch_size"]:.2f}'
        accuracies = (f'{value:.4f}' for value in (statistics.mean(values), min(values), max(values)))
        rows.append((name, *costs, f'{entry["learning_rate"]:g}', *accuracies))
    return [
        f'{name:20}{parameters:>11}{macs:>12}' + ''.join(f'{cell:>9}' for cell in cells)
        for name, parameters, macs, *cells in rows
    ]
