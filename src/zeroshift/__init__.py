"""Move a pretrained image generator into a domain that exists only as words.

Importing the package loads nothing heavy: every public name below is fetched from its module when it is first
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zeroshift import portraits as portraits
    from zeroshift.app.publish import push_to_hub as push_to_hub
    from zeroshift.comparison.compare import compare as compare
    from zeroshift.config.recipes import recipe as recipe
    from zeroshift.config.schema import AdaptConfig as AdaptConfig
    from zeroshift.errors import InputError as InputError
    from zeroshift.errors import RunError as RunError
    from zeroshift.errors import ZeroshiftError as ZeroshiftError
    from zeroshift.files.describe import inspect as inspect
    from zeroshift.files.export import convert as convert
    from zeroshift.files.registry import load_clip as load_clip
    from zeroshift.files.registry import load_discriminator as load_discriminator
    from zeroshift.files.registry import load_generator as load_generator
    from zeroshift.measure.evaluate import evaluate as evaluate
    from zeroshift.methods.adapt import adapt as adapt
    from zeroshift.methods.adapt import plan as plan
    from zeroshift.pictures.runs import load as load
    from zeroshift.pictures.sample import sample as sample
    from zeroshift.pictures.translate import translate as translate

__version__ = "0.2.0"

_HOME = {
    "AdaptConfig": "config.schema",
    "InputError": "errors",
    "RunError": "errors",
    "ZeroshiftError": "errors",
    "adapt": "methods.adapt",
    "compare": "comparison.compare",
    "convert": "files.export",
    "evaluate": "measure.evaluate",
    "inspect": "files.describe",
    "load": "pictures.runs",
    "load_clip": "files.registry",
    "load_discriminator": "files.registry",
    "load_generator": "files.registry",
    "plan": "methods.adapt",
    "push_to_hub": "app.publish",
    "recipe": "config.recipes",
    "sample": "pictures.sample",
    "translate": "pictures.translate",
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
    "load_discriminator",
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
        raise AttributeError(
            f"module 'zeroshift' has no attribute {name!r}; its public names are {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(f"zeroshift.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
