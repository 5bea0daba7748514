"""Compares the servers of a resumed run with those that its folder was begun with: other outputs must not be mixed in
unnoticed. It knows what servers show of themselves: their models, what they give, and the first prompt's first tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specexp.engines.served_methods import SERVED
from specexp.errors import EngineError, shown

WAY_OUT = "start that server again, or name another output folder."


def check_same_server(name: str, begun: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> None:
    """Raise EngineError if an engine no longer has its model, or gives ids where it gave text, or the reverse.

    `begun` are the folder's environments, `now` this engine's facts. A server that lists no models is not judged by
    them: names are then not what it goes by.
    """
    for before in _of(name, begun):
        model = before["model"]
        if model in before["models"] and now["models"] and model not in now["models"]:
            raise EngineError(
                f"{SERVED}{name}: the server at {now['url']} had the model {shown(model)} when this folder was begun,"
                f" and now has {', '.join(map(shown, now['models'][:5]))}; {WAY_OUT}"
            )
        if before["compared_by"] != now["compared_by"]:
            raise EngineError(
                f"{SERVED}{name}: the server at {now['url']} gave outputs to compare by {before['compared_by']} when"
                f" this folder was begun, and now by {now['compared_by']}, so it is another server or version;"
                f" {WAY_OUT}"
            )


def changes(environments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what else changed between the parts of a resumed run, for the report."""
    names = dict.fromkeys(name for environment in environments for name in environment.get("engines", {}))
    result = []
    for name in names:
        parts = _of(name, environments)
        lists = {tuple(part["models"]) for part in parts}
        firsts = list(dict.fromkeys(part["first_output"] for part in parts if "first_output" in part))
        if len(firsts) > 1:
            result.append(
                f"{SERVED}{name}: the run was resumed, and the server then began the first prompt's greedy output with"
                f" {shown(firsts[-1])}, before with {shown(firsts[0])}: another model, or outputs that vary."
            )
        elif len(lists) > 1:
            result.append(f"{SERVED}{name}: the run was resumed, and the server then listed other models than before.")
    return result


def _of(name: str, environments: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each["engines"][name] for each in environments if name in each.get("engines", {})]
