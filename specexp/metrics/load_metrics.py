"""Metrics of served engines under load, a part of the catalogue.

Their step is the level: clients at once, and of `load/open_...` requests in 1,000 seconds.
"""

from __future__ import annotations

from specexp.metrics.metric import Metric

_BOUNDS = ("_low", "_high")

LOAD_METRICS: tuple[Metric, ...] = (
    Metric(("load/tokens_per_second",),
        "of a served engine under load, by the number of clients (the step): tokens of the answers that ended in a "
        "measurement / its seconds",
        "tokens/s", "higher", ends=_BOUNDS,
    ),
    Metric(("load/requests_per_second",),
        "the same of requests",
        "1/s", "higher", ends=_BOUNDS,
    ),
    Metric(("load/goodput",),
        "requests a second that meet `ttft_bound` and `tpot_bound`",
        "1/s", "higher", ends=_BOUNDS,
    ),
    Metric(("load/ttft_NAME", "load/tpot_NAME"),
        "median, p90 and p99 of the time to first token, and of the time per token after the first",
        "s", "lower",
    ),
    Metric(("load/speedup",),
        "tokens per second / those of the first engine at the same number of clients",
        "ratio", "higher", ends=_BOUNDS,
    ),
    Metric(("load/failures",),
        "requests that failed; they are not sent again, and are in no rate and no latency",
        "requests", "lower",
    ),
    Metric(("load/client_share",),
        "share of its own capacity, measured against a local server that answers at once, that the client used",
        "share", "lower",
    ),
    Metric(("load/break_even_concurrency", "load/break_even_request_rate"),
        "the lowest level from which on no level has a speed-up above 1; absent if the highest level has one",
        "clients; 1/s", "higher",
    ),
    Metric(("load/open_...",),
        "the same at a rate of Poisson arrivals (the step is requests in 1,000 seconds); `load/open_speedup` is the "
        "first engine's seconds per token of whole requests / the method's",
        "as named", "",
    ),
)  # fmt: skip
