"""Move a pretrained image generator into a domain that exists only as words.

Importing the package loads nothing heavy: every public name below is fetched from its module when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import portraits as portraits
    from .adapt import adapt as adapt
    from .adapt import plan as plan
    from .compare import compare as compare
    from .config import AdaptConfig as AdaptConfig
    from .describe import inspect as inspect
    from .errors import InputError as InputError
    from .errors import RunError as RunError
    from .errors import ZeroshiftError as ZeroshiftError
    from .evaluate import evaluate as evaluate
    from .export import convert as convert
    from .publish import push_to_hub as push_to_hub
    from .recipes import recipe as recipe
    from .registry import load_clip as load_clip
    from .registry import load_generator as load_generator
    from .sample import load as load
    from .sample import sample as sample
    from .translate import translate as translate

__version__ = "0.1.0"

_HOME = {
    "AdaptConfig": "config",
    "InputError": "errors",
    "RunError": "errors",
    "ZeroshiftError": "errors",
    "adapt": "adapt",
    "compare": "compare",
    "convert": "export",
    "evaluate": "evaluate",
    "inspect": "describe",
    "load": "sample",
    "load_clip": "registry",
    "load_generator": "registry",
    "plan": "adapt",
    "push_to_hub": "publish",
    "recipe": "recipes",
    "sample": "sample",
    "translate": "translate",
}

__all__ = [
    "AdaptConfig",
    "InputError",
    "RunError",
    "ZeroshiftError",
    "adapt",
    "compare",
    "convert",
    "evaluate",
    "inspect",
    "load",
    "load_clip",
    "load_generator",
    "plan",
    "portraits",
    "push_to_hub",
    "recipe",
    "sample",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name == "portraits":
        return importlib.import_module("zeroshift.portraits")
    if name not in _HOME:
        raise AttributeError(f"module 'zeroshift' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(importlib.import_module(f"zeroshift.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _Package(ModuleType):
    """The package module, in which a verb wins over the submodule of the same name.

    Importing `zeroshift.adapt` would bind the module to `zeroshift.adapt` and hide the function; this binds the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
