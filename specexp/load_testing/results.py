"""The results of load as JSON, as a table in the terminal, in sentences, and as MLflow runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specexp.evaluation.preparation import Prepared
from specexp.load_testing import estimates
from specexp.load_testing.capacity import binds
from specexp.load_testing.estimates import Bounds, BreakEven, LevelEstimate, break_even
from specexp.load_testing.levels import Level
from specexp.load_testing.measurement import Load
from specexp.metrics.statistics import Interval
from specexp.storage import environment
from specexp.storage.run_plan import File, Input, MetricPoint, RunSpec, logged, now

RESULTS, FIGURE, PAGE = "load.json", "load.png", "load.html"
UNITS = {"concurrency": "clients", "request_rate": "requests/s"}


def as_json(load: Load) -> dict[str, Any]:
    """Return all numbers. A level's `client` says what share of the client's time it took; values are intervals."""
    experiment = load.prepared.experiment
    bounds = Bounds(experiment.ttft_bound, experiment.tpot_bound)
    measured = {key: estimates.measured(rounds, bounds) for key, rounds in load.segments.items()}
    plain = load.methods[0]
    levels = []
    for level in load.levels:
        methods = {}
        for name in load.methods:
            result, rounds = measured[level, name], load.segments[level, name]
            share = load.capacity(level).share(rounds)
            lag = max(each.lag for each in rounds)
            methods[name] = {
                "requests": result.requests,
                "failures": result.failures,
                "failed_with": _counted([why for each in rounds for why in each.failures]),
                "tokens": sum(sample.tokens for each in rounds for sample in each.samples),
                "seconds": sum(each.seconds for each in rounds),
                "most_in_flight": max(each.most_in_flight for each in rounds),
                "complete": all(each.complete for each in rounds),
                "client": {"share": share, "lag": lag, "binds": binds(share, lag)},
                **{key: _plain(result.interval(key)) for key in result.values},
                "speedup": _plain(estimates.interval(estimates.speedup(level, result, measured[level, plain]))),
            }
        levels.append({"kind": level.kind, "value": level.value, "methods": methods})
    crossings = {
        name: {kind: each for kind in UNITS if (each := _break_even(load, measured, name, kind)) is not None}
        for name in load.methods[1:]
    }
    return {
        "methods": list(load.methods),
        "levels": levels,
        "break_even": {
            name: {
                kind: {**_finite(asdict(each)), "words": each.words(), "determined": each.is_determined}
                for kind, each in kinds.items()
            }
            for name, kinds in crossings.items()
        },
        "bounds": {"ttft_ms": bounds.ttft or None, "tpot_ms": bounds.tpot or None},
        "client_capacity": [
            {**asdict(each), "requests_per_second": each.requests_per_second,
             "tokens_per_second": each.tokens_per_second}
            for each in load.capacities
        ],
        "engines": dict(load.engines),
        "setting": {**experiment.as_dict(), "settings_hash": experiment.hash, "prompts": len(load.prepared.examples)},
        "environment": environment.describe({}, {}),
    }  # fmt: skip


def _break_even(
    load: Load, measured: Mapping[tuple[Level, str], LevelEstimate], name: str, kind: str
) -> BreakEven | None:  # fmt: skip
    levels = [level for level in load.levels if level.kind == kind]
    if not levels:
        return None
    plain = load.methods[0]
    speedups = [estimates.speedup(level, measured[level, name], measured[level, plain]) for level in levels]
    return break_even([level.value for level in levels], speedups)


def _counted(failures: Sequence[str]) -> dict[str, int]:
    return {why: failures.count(why) for why in dict.fromkeys(failures)}


def _plain(interval: Interval) -> dict[str, float | None]:
    return _finite(asdict(interval))


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers that JSON knows: what is infinite or unknown is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def table(result: Mapping[str, Any]) -> str:
    """Return one row for each level and method."""
    goodput = any(result["bounds"].values())
    head = (
        f"{'load':>8}  {'method':<20}{'tok/s':>9}  {'95 %':<15}{'req/s':>8}{'TTFT ms':>9}{'p90':>8}{'p99':>8}"
        f"{'TPOT ms':>9}{'p90':>8}{'p99':>8}{'goodput':>9}{'speed-up':>10}  {'95 %':<12}failed"
    )
    lines = [head if goodput else head.replace(f"{'goodput':>9}", "")]
    for level in result["levels"]:
        label = f"{level['value']:g}" + ("/s" if level["kind"] == "request_rate" else "")
        for name, each in level["methods"].items():
            speed, up = each["tokens_per_second"], each["speedup"]
            latencies = "".join(
                cell(each[f"{key}_{quantile}"]["value"], 9 if quantile == "median" else 8, 1000.0)
                for key in ("ttft", "tpot")
                for quantile in estimates.QUANTILES
            )
            good = cell(each["goodput"]["value"], 9) if goodput else ""
            mark = " *" if each["client"]["binds"] else ""
            lines.append(
                f"{label:>8}  {name:<20}{cell(speed['value'], 9)}  {span(speed, 0):<15}"
                f"{cell(each['requests_per_second']['value'], 8)}{latencies}{good}{cell(up['value'], 9)}x"
                f"  {span(up, 2):<12}{each['failures']}{mark}".rstrip()
            )
    return "\n".join(lines)


def cell(value: float | None, width: int, scale: float = 1.0) -> str:
    """Return a number of three digits or more, or nothing where there is none."""
    if value is None:
        return " " * width
    number = value * scale
    return f"{number:>{width}.{0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2}f}"


def span(interval: Mapping[str, float | None], digits: int) -> str:
    """Return an interval as text."""
    if interval["low"] is None or interval["high"] is None:
        return ""
    return f"{interval['low']:.{digits}f} - {interval['high']:.{digits}f}"


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Return from where speculation no longer pays, a sentence for each method and kind of load."""
    plain = result["methods"][0]
    return [
        f"The {kind.replace('_', ' ')} from which {name} is no longer faster than {plain}: {each['words']}."
        for name, kinds in result["break_even"].items()
        for kind, each in kinds.items()
    ]


def warnings(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the numbers: where the client bound, what failed, what was cut short."""
    said = []
    for level in result["levels"]:
        for name, each in level["methods"].items():
            where = f"{name} at {level['value']:g} {UNITS[level['kind']]}"
            if each["client"]["binds"]:
                said.append(f"{where}: the client may bind: {each['client']['binds']}; the engine may be faster.")
            if each["failures"]:
                why, count = max(each["failed_with"].items(), key=lambda item: item[1])
                said.append(
                    f"{where}: {each['failures']} requests failed and were not sent again; they are in no latency and"
                    f" no rate; {count} of them: {why}"
                )
            if not each["complete"]:
                said.append(f"{where}: level_seconds ended it after {each['requests']} requests; raise it for more.")
    return said


def method_runs(load: Load, result: Mapping[str, Any], uid: str) -> list[RunSpec]:
    """Return a run for each method, whose metrics have the level as their step."""
    return [_method_run(load.prepared, result, name, uid) for name in load.methods]


def _method_run(prepared: Prepared, result: Mapping[str, Any], name: str, uid: str) -> RunSpec:
    experiment = prepared.experiment
    engine = next(each.engine for each in prepared.served if each.config.label == name)
    points = [
        point
        for level in result["levels"]
        for point in points_of(level["kind"], Level(level["kind"], level["value"]).step, level["methods"][name])
    ]
    tags = {"method": name, "engine": engine.name, "group": experiment.name, "task": experiment.task, "of": "load"}
    bound = any(level["methods"][name]["client"]["binds"] for level in result["levels"])
    params = {
        "engine.url": engine.endpoint.url, "engine.model": engine.endpoint.model, "engine.api": engine.endpoint.api,
        "max_new_tokens": experiment.max_new_tokens, "temperature": experiment.temperature,
        "num_requests": experiment.num_requests, "repeats": experiment.repeats,
        "ttft_bound": experiment.ttft_bound, "tpot_bound": experiment.tpot_bound,
    }  # fmt: skip
    crossing = result["break_even"].get(name, {})
    metrics = {f"load/break_even_{kind}": each["value"] for kind, each in crossing.items() if each["value"] is not None}
    return RunSpec(
        key=f"{uid}/load/{name}", name=f"load {name}"[:40],
        tags={**tags, **({"client_binds": "true"} if bound else {})}, params=logged(params), metrics=metrics,
        files=[File(RESULTS), File("config.json")],
        inputs=[Input.of(prepared.task.dataset(), "evaluation")], time=now(), series=points,
    )  # fmt: skip


NAMES = (
    "tokens_per_second", "requests_per_second", "goodput", "ttft_median", "ttft_p90", "ttft_p99", "tpot_median",
    "tpot_p90", "tpot_p99", "speedup",
)  # fmt: skip


def points_of(kind: str, step: int, values: Mapping[str, Any]) -> list[MetricPoint]:
    """Return a level's metrics. Those of arrivals have names of their own, since their steps are other numbers."""
    prefix = "load/" if kind == "concurrency" else "load/open_"
    points = [MetricPoint(f"{prefix}failures", float(values["failures"]), step)]
    points.append(MetricPoint(f"{prefix}client_share", values["client"]["share"], step))
    for name in NAMES:
        for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            if name in values and values[name][key] is not None:
                points.append(MetricPoint(f"{prefix}{name}{end}", values[name][key], step))
    return points


def paths(folder: Path) -> list[Path]:
    """Return the files of a finished benchmark that go to its main run."""
    return [folder / name for name in (RESULTS, FIGURE, PAGE, "config.json")]
