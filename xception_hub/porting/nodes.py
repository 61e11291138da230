"""How the layers of a Keras config are wired: every call of a layer, in all formats in which Keras has written it.

Keras 3                  {"args": [tensor, 2.0], "kwargs": {"training": false}}, a tensor with its "keras_history"
Keras 2                  [["block1_conv1", 0, 0, {"training": false}]], or a single one of these for an operation
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

CONSTANT = '_CONSTANT_VALUE'  # what tf_keras writes for the name of a layer where a number is


class Tensor(NamedTuple):
    """An output of a layer: of which of its calls, and which one of that."""

    layer: str
    node: int = 0
    output: int = 0


class Argument(NamedTuple):
    """What a layer is called with beside tensors: its place among the operands, its name if it has one, its value."""

    place: int
    name: str | None
    value: Any


class Call(NamedTuple):
    """One call of a layer: what it takes, and whether Keras 3 wrote it, with arguments that are its defaults."""

    tensors: tuple[Tensor, ...]
    arguments: tuple[Argument, ...] = ()
    of_keras3: bool = False


def read_calls(entry: dict[str, Any]) -> tuple[Call, ...]:
    """All calls of a layer, from its entry in a config."""
    nodes = entry.get('inbound_nodes', [])
    return tuple(_of_keras3(node) if isinstance(node, dict) else _of_keras2(node) for node in nodes)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a part of a config, in order."""
    if isinstance(value, dict):
        if 'keras_history' in value:
            yield Tensor(*value['keras_history'])
        else:
            for part in value.values():
                yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        if len(value) >= 3 and isinstance(value[0], str) and all(type(i) is int for i in value[1:3]):
            yield Tensor(*value[:3])
        else:
            for part in value:
                yield from tensors_in(part)


def _of_keras3(node: dict[str, Any]) -> Call:
    operands = [*((None, value) for value in node.get('args', [])), *node.get('kwargs', {}).items()]
    return _call([(place, name, value) for place, (name, value) in enumerate(operands)])._replace(of_keras3=True)


def _of_keras2(node: list[Any]) -> Call:
    operands: list[tuple[int, str | None, Any]] = []
    for place, part in enumerate([node] if isinstance(node[0], str) else node):
        operands.append((place, None, part[2] if part[0] == CONSTANT else part[:3]))
        named = part[3].items() if len(part) > 3 else ()
        operands += [(place + number, name, value) for number, (name, value) in enumerate(named, start=1)]
    return _call(operands)


def _call(operands: list[tuple[int, str | None, Any]]) -> Call:
    found = [(operand, tuple(tensors_in(operand[2]))) for operand in operands]
    tensors = tuple(tensor for _, several in found for tensor in several)
    return Call(tensors, tuple(Argument(*operand) for operand, several in found if not several))
