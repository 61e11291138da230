"""Stand-ins for packages that are not installed: enough to import the module of a command and to print its help."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

Result = TypeVar('Result')


class StandIn(type):
    """A class that may be a base, an annotation or a decorator; each of its attributes is another one."""

    def __getattr__(cls, name: str) -> 'StandIn':
        if name.startswith('__'):
            raise AttributeError(name)
        return StandIn(name, (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> 'StandIn':
        return cls

    def __getitem__(cls, item: Any) -> 'StandIn':
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


class Finder(MetaPathFinder, Loader):
    """Finds modules whose attributes are stand-ins.

    Attributes:
        packages: Names of the packages that it stands in for.
    """

    def __init__(self) -> None:
        self.packages: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = fullname.partition('.')[0] in self.packages
        return ModuleSpec(fullname, self, is_package=True) if found else None

    def exec_module(self, module: ModuleType) -> None:
        vars(module)['__getattr__'] = StandIn('module', (), {}).__getattr__


@contextmanager
def _found_first(finder: Finder) -> Iterator[None]:
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def with_stand_ins(load: Callable[[], Result], own: str) -> Result:
    """What a function returns that imports packages, where some of them are not installed.

    What has been imported stays so: it can describe itself, and no more.

    Args:
        load: The function.
        own: Name of the package whose modules have no stand-in.

    Raises:
        ImportError: A module of `own` is not there.
    """
    finder = Finder()
    with _found_first(finder):
        while True:
            try:
                return load()
            except ImportError as e:
                package = (e.name or '').partition('.')[0]
                if package in {'', own} | finder.packages:
                    raise
                finder.packages.add(package)
