"""specexp: which decoding method to use with a pair of models, and what it gains.

    import specexp

    pair = specexp.load("arith_quick")
    out = pair.generate("Mia has 4 apples. Then she buys 3 more. Zoe gives Mia 5 more. How many is that in the end?\\n")
    print(out.text, out.tokens_per_call)

Public names: `load`, `LoadedPair`, `Output`, `SpecexpError`, `ConfigError`. Importing this package loads no model
library; `load` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specexp.errors import ConfigError, SpecexpError

if TYPE_CHECKING:
    from specexp.api import LoadedPair, Output, load

__all__ = ["ConfigError", "LoadedPair", "Output", "SpecexpError", "load"]
_LAZY = {"LoadedPair", "Output", "load"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from specexp import api

        return getattr(api, name)
    raise AttributeError(f"module 'specexp' has no attribute '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
