"""Measures calls of an experiment's models with a context as long as in mid-output: seconds per call for costs.json,
and what calls cost relative to each other for drafts that adapt (`gamma: auto`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from specexp.decoding.draft_length import RelativeCosts
from specexp.errors import OutputError
from specexp.evaluation.preparation import (
    Prepared,
)
from specexp.lm import out_of_memory
from specexp.methods import BuildContext, decoder_for
from specexp.profiling import call_costs
from specexp.sequences.token_ids import lengths_of
from specexp.storage.run_folder import OutputFolder

SIZES = ("target", "tree_draft", "tree_target")  # kinds of costs that are seconds by number of positions
CATCH_UP, BLOCK, EVENTS = "catch_up", "block", "events"  # what costs of earlier versions do not have
DRAFT_COSTS = "draft_costs.json"
ROUNDS = 3  # rounds of each kind that are timed per measurement


def check_sizes(output: OutputFolder, begun: Any, costs: Any) -> None:
    """Raise OutputError unless costs have the calls of an interrupted run's costs, with which they are combined."""
    if begun is None:
        return
    kinds = [*SIZES, *({CATCH_UP} & begun.keys())]
    calls = [each and (each["draft"] is None, *(set(each[kind]) for kind in kinds)) for each in (begun, costs)]
    if calls[0] != calls[1]:
        raise OutputError(
            f"{output.path / 'costs.json'} has costs of other calls than these settings make: it was edited by hand."
            " Restore it, or remove it to measure the costs again."
        )


def costs_of(measured: Mapping[str, Any] | None) -> call_costs.Costs | None:
    """Return the result of `measure_costs` as costs; also from JSON, whose keys are text."""
    if measured is None:
        return None
    kinds = (measured.get(kind, {}) for kind in (*SIZES, CATCH_UP))
    target, tree_draft, tree_target, catch_up = ({int(n): value for n, value in each.items()} for each in kinds)
    block = bool(measured.get(BLOCK))
    events = bool(measured.get(EVENTS))
    return call_costs.Costs(measured["draft"], target, tree_draft, tree_target, catch_up, block, events)


def timed_by_events(measured: Mapping[str, Any] | None) -> bool:
    """True if all of these costs were timed on the device, back to back; also where none were measured."""
    return measured is None or bool(measured.get(EVENTS))


def measure_costs(prepared: Prepared, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any] | None:
    """Measure seconds per call with a context as long as in mid-output. Returns None if no setting verifies tokens."""
    gammas = sorted(set().union(*(setting.lengths for setting in prepared.settings)))
    trees = list({x.nodes: x for setting in prepared.settings for x in setting.rounds}.values())
    if not gammas and not trees:
        return None
    ahead = max(call_costs.ROW, *gammas, *(tree.depth for tree in trees)) + 1
    behind = _context(prepared, ahead)
    result = call_costs.measure(prepared.pair.models, behind, gammas, trees, ROUNDS, clock)
    return {
        "context": len(behind),
        "draft": result.draft_step,
        **{kind: _by_text(getattr(result, kind)) for kind in (*SIZES, CATCH_UP)},
        **({BLOCK: 1} if result.block else {}),
        **({EVENTS: 1} if result.by_events else {}),
    }


def with_draft_costs(
    prepared: Prepared, output: OutputFolder, measure: Callable[[int], RelativeCosts] | None = None
) -> Prepared:
    """Tell the decoders of `gamma: auto` what calls cost: what was measured when the folder was begun, else now.

    Where tokens are sampled, chains of other lengths give other tokens: a resumed run must have the same costs.
    `measure` takes the longest chain; the default measures the calls of this process.
    """
    adapting = [setting for setting in prepared.settings if setting.config.auto_gamma]
    if not adapting:
        return prepared
    most = max(setting.config.max_gamma for setting in adapting)
    costs = saved_costs(output)
    if costs is None:
        costs = measure(most) if measure is not None else relative_costs(prepared, most)
        output.write_json(DRAFT_COSTS, asdict(costs))
    return adapted(prepared, costs)


def saved_costs(output: OutputFolder) -> RelativeCosts | None:
    """What `with_draft_costs` has written; None if no draft adapts."""
    begun = output.read_json(DRAFT_COSTS)
    return None if begun is None else RelativeCosts.of(begun)


def relative_costs(prepared: Prepared, most: int) -> RelativeCosts:
    """Measure what calls cost relative to each other, for chains of at most `most` tokens."""
    with out_of_memory.translate_oom("measuring calls", "max_gamma", prepared.experiment.models):
        return call_costs.relative_costs(prepared.pair.models, _context(prepared, most + 1), most)


def adapted(prepared: Prepared, costs: RelativeCosts) -> Prepared:
    """Return the same with these costs known to the decoders of `gamma: auto`."""
    pair = prepared.pair
    context = BuildContext(prepared.experiment.warp, prepared.judges, pair.eos_ids, costs, pair.vocabulary)
    settings = [
        replace(setting, decoder=decoder_for(setting.config, context)) if setting.config.auto_gamma else setting
        for setting in prepared.settings
    ]
    return replace(prepared, settings=settings)


def _context(prepared: Prepared, ahead: int) -> list[int]:
    """Ids as long as in mid-output, which leave space for `ahead` more tokens."""
    length = max(lengths_of(prepared.prompts))
    ids = prepared.prompts[0]
    limit = min(model.context for model in prepared.pair.models.values()) - ahead
    return (ids * (length // len(ids) + 2))[: min(length + 32, limit)]


def _by_text(seconds: Mapping[int, float]) -> dict[str, float]:
    """Return a mapping with its sizes as text, for JSON."""
    return {str(n): each for n, each in seconds.items()}


def median_of(measured: Sequence[Any]) -> Any:
    """Return the median of numbers; of mappings with equal keys, the median of each value."""
    if isinstance(measured[0], Mapping):
        return {key: median_of([each[key] for each in measured]) for key in measured[0]}
    return None if measured[0] is None else median(measured)
