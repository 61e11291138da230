"""Arguments of a network that a file records: data, compared with the network's signature before anything is called."""

from collections.abc import Collection, Sequence
from inspect import signature
from typing import Any, get_args, get_origin, get_type_hints

import timm

from ..errors import CheckpointError
from ..head import HeadLayer
from ..network import Xception, check_arguments

# argument -> type in the signature; device and dtype, which have none, are the caller's alone
SIGNATURE: dict[str, Any] = {name: hint for name, hint in get_type_hints(Xception.__init__).items() if name != 'return'}
HEAD_VALUES = dict(fc=int, bias=bool, bn=float, momentum=float, act=str, drop=float, flatten=Sequence[int])
DEFAULTS = {name: parameter.default for name, parameter in signature(Xception).parameters.items()}
# Arguments that change what the same tensors compute, as Keras has them.
NUMERICS = {name: DEFAULTS[name] for name in ('bn_eps', 'pool_padding', 'stem_padding', 'act_layer')}
# Arguments that make the paper's variants, which are other networks, as figure 5 has them.
VARIANTS = {name: DEFAULTS[name] for name in ('residual', 'mid_act_layer', 'segments', 'order', 'width_multiplier')}
MAX_NUMBER = 2**20  # classes, channels, widths, pixels
NAMES = 'xception_paper'  # names of models that a file may ask for begin so


def network_arguments(recorded: Any, place: str, replaced: Collection[str] = ()) -> dict[str, Any]:
    """The arguments that a file records, if the network has them and takes their values.

    Args:
        recorded: What stands in the file.
        place: Name of the file, or of the part of it, in errors.
        replaced: Arguments that the caller gives, so that the file's do not count.

    Raises:
        CheckpointError: One is no argument of the network, or of another type, or the network does not take its value.
    """
    if not isinstance(recorded, dict):
        raise CheckpointError(f'{place} records a {type(recorded).__name__} instead of arguments of the network.')
    arguments = {name: value for name, value in recorded.items() if name not in replaced}
    for name, value in arguments.items():
        if name not in SIGNATURE:
            raise CheckpointError(
                f'{place} records {name}={value!r:.200}, which is no argument of the network. The network has: '
                f'{", ".join(SIGNATURE)}. Remove {name} from the file; if you mean it, pass it yourself.'
            )
        if not _is_of(value, SIGNATURE[name]):
            raise CheckpointError(
                f'{place} records {name}={value!r:.200}; it has to be {_described(SIGNATURE[name])}. Correct the file, '
                f'or pass {name} yourself.'
            )
    try:
        check_arguments({**DEFAULTS, **arguments})
    except ValueError as e:
        raise CheckpointError(f'{place} records {e} Correct the file, or pass the argument yourself.') from e
    return arguments


def model_name(recorded: str | None, place: str) -> str:
    """The registered name that a file records; that of figure 5 if it records none, or that of another project.

    Raises:
        CheckpointError: The name is one of this project's by its beginning, but nobody has registered it.
    """
    if not recorded or not recorded.startswith(NAMES):
        return NAMES
    if recorded not in (names := timm.list_models(f'{NAMES}*')):
        raise CheckpointError(
            f'{place} records the architecture {recorded!r:.200}. The names are: {", ".join(names)}. Correct the file, '
            f'or read it with the version of this package that wrote it.'
        )
    return recorded


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value that comes from a file is of a type. A bool is no number, and a class never comes from a file."""
    if hint is float or hint is int:
        return type(value) in (int, hint) and abs(value) <= MAX_NUMBER
    if hint == HeadLayer:
        return isinstance(value, dict) and all(_is_of(part, HEAD_VALUES.get(key)) for key, part in value.items())
    if get_origin(hint) is Sequence:
        return isinstance(value, (list, tuple)) and all(_is_of(part, get_args(hint)[0]) for part in value)
    if isinstance(hint, type):
        return type(value) is hint
    return any(_is_of(value, option) for option in get_args(hint))


def _described(hint: Any) -> str:
    return 'a list of dicts' if get_args(hint) == (HeadLayer,) else getattr(hint, '__name__', str(hint))
