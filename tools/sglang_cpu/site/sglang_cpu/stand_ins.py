"""In place of what SGLang imports when it starts and never calls here: GPU kernels, audio."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class StandIns(MetaPathFinder, Loader):
    """Finds the packages of the given names, and every submodule of theirs, as stand-ins.

    Appended to `sys.meta_path`, it comes last: a package that is really installed is used.
    """

    def __init__(self, *packages: str) -> None:
        self._packages = packages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A package without a file."""
        if fullname.partition(".")[0] in self._packages:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module with every name in it."""
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


class _Module(ModuleType):
    __version__ = "0.0.0+cpu"

    def __getattr__(self, name: str) -> Any:
        return _attribute(f"{self.__name__}.{name}")

    # Not kernels but arithmetic, which is called on a CPU too.

    @staticmethod
    def cdiv(x: int, y: int) -> int:
        """`triton.cdiv`."""
        return -(x // -y)

    @staticmethod
    def next_power_of_2(n: int) -> int:
        """`triton.next_power_of_2`."""
        return 1 << (n - 1).bit_length()


class _Missing:
    """A name of such a module: takes decorations and declarations, but no tensors."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return _attribute(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        if any(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values())):
            raise RuntimeError(f"{self._name} is only a stand-in: this SGLang is for the CPU")
        if len(args) == 1 and not kwargs and callable(args[0]):
            return args[0]  # a bare decorator
        return self

    def __getitem__(self, key: Any) -> Any:
        return self


def _attribute(name: str) -> Any:
    last = name.rpartition(".")[2]
    if last.startswith("__"):
        raise AttributeError(name)
    if last[0].isupper():
        # A class, to be inherited from, compared with or caught.
        return type(last, (Exception,), {"__init__": _anything})
    return _Missing(name)


def _anything(self: object, *_: Any, **__: Any) -> None:
    """Takes whatever the real class would."""
