"""A speed benchmark: how close this project's decoding is to the limit, and its gain over what others offer.

One process. First it compares every contender's greedy output, which also warms the contenders up. Then it searches the
draft lengths, then times the best one against everything else, on timings of its own: a choice among noisy numbers
flatters the chosen one. Everything is interleaved, in an order that rotates from prompt to prompt and from repeat to
repeat. `benchmark_report.py` evaluates the numbers; this module does not know MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from tqdm import tqdm

from specexp import config
from specexp.benchmark import peers, throughput
from specexp.benchmark.contenders import HFContender
from specexp.benchmark.peers import Peer, has_assistant, plain_peer
from specexp.errors import ModelError, first_line
from specexp.evaluation import measured_costs, preparation, time_split
from specexp.evaluation.equality import Difference, differences
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.timing import (
    Contender,
    SpecexpContender,
    TimingPhase,
    Timings,
    decoding,
    once,
    sampled,
    timings,
)
from specexp.lm.hf import loading
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.runtime import CHAIN_HEADS
from specexp.method_specs import spec
from specexp.metrics.statistics import rate
from specexp.profiling import bandwidth
from specexp.sequences.token_ids import longest_of
from specexp.storage import environment
from specexp.storage.journal import Journal

PLAIN, GENERATE, FIRST_TOKEN, COMPILED = "plain", "generate", "generate_first_token", "generate_compiled"
OTHERS = ("specexec", "lookup")  # at their presets
PEERS = 3  # of transformers, besides its assisted generation and a compiled forward
TEMPERATURE = 0.7
SPLIT_PROMPTS = 8  # of the instrumented runs
EVERY = 4  # prompts between two measurements of what calls cost


@dataclass(frozen=True, slots=True)
class Measured:
    """All measurements. `search` holds every draft length, `timed` the best one and everything else."""

    prepared: Prepared
    environment: Mapping[str, Any]
    differences: Sequence[Difference]
    skipped: Mapping[str, str]  # name: why
    gamma: int
    search: Timings
    timed: Timings
    search_costs: Mapping[str, Any]  # measured among the timings of `search`, and `costs` among those of `timed`
    costs: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, float]]  # seconds of an instrumented run, of plain decoding and the chain
    floor: bandwidth.BandwidthBound
    batched: throughput.Batched | None  # None where a batch is one prompt


def prepare(experiment: config.Experiment) -> Prepared:
    """Load the pair and the task, with the methods that a benchmark has besides plain decoding and chains.

    Trees are left out where a model's config says that the model cannot score them.
    """
    left_out = without_trees(experiment)
    names = [name for name in OTHERS if not (left_out and spec(name).grows_tree)]
    more = config.adjusted(experiment, {"methods": names}).methods
    return preparation.prepare(replace(experiment, methods=(*experiment.methods, *more)))


def without_trees(experiment: config.Experiment) -> str:
    """The reason, from its config, why one of the models cannot score trees; "" if both can."""
    if experiment.draft.head in CHAIN_HEADS:
        return f"draft {experiment.draft.shown} drafts chains"
    if experiment.toy is None:
        try:
            for model in experiment.models.values():
                loading.check_decodable(model, trees=True)
        except ModelError as error:
            return str(error)
    return ""


def num_runs(prepared: Prepared, with_compiled: bool) -> int:
    """The number of outputs that are decoded one at a time, without instrumented runs and a batch's passes."""
    experiment, num_chains = prepared.experiment, sum(s.config.method == "speculative" for s in prepared.settings)
    sides = 1 + has_assistant(prepared.pair)  # that draft: chains, and transformers' assistant
    greedy = len(prepared.settings) + PEERS + with_compiled + num_chains * (sides - 1)
    rest = greedy - sides * num_chains + sides
    runs = greedy + experiment.repeats * (1 + sides * num_chains + rest + 2 + sides)
    return runs * len(prepared.prompts)


def measure(prepared: Prepared, with_compiled: bool, journal: Journal | None = None) -> Measured:
    """Compare, search, time, and split the decode time into parts. Nothing that the journal has is measured again.
    Raises ModelError when memory runs out."""
    journal = Journal() if journal is None else journal
    own = _own(prepared)
    hf_contenders = _hf_contenders(prepared)
    skipped = {} if with_compiled else {COMPILED: "not asked for"}
    if not has_assistant(prepared.pair):
        skipped["assisted"] = "transformers' generate() takes no such draft as its assistant"
    if reason := without_trees(prepared.experiment):
        skipped |= {name: reason for name in OTHERS if spec(name).grows_tree}
    if not with_compiled:
        del hf_contenders[COMPILED]
    greedy: dict[str, Contender] = {**own, **hf_contenders}
    repeats, num_prompts = prepared.experiment.repeats, len(prepared.prompts)
    chains = [name for name, contender in own.items() if contender.setting.config.method == "speculative"]
    assisted = [name for name, contender in hf_contenders.items() if contender.gamma]
    size = prepared.experiment.batch
    passes = throughput.num_passes(prepared, 2) if size > 1 else 0
    total = num_runs(prepared, with_compiled) + passes
    longest = longest_of(prepared.prompts)
    cold = set(greedy) if journal.resumed else set()
    with tqdm(total=total, desc=prepared.experiment.name, unit="run", dynamic_ncols=True) as bar:
        outputs, failed = _outputs(prepared, greedy, journal, cold, longest, bar)
        skipped |= failed
        result = _differences(prepared, outputs)
        costing = _Costing(prepared, journal, "search")
        asked = [greedy[name] for name in (PLAIN, *chains, *assisted)]
        phase = TimingPhase(journal, "search", cold, longest)
        search = timings(asked, num_prompts, repeats, bar, _Spread(repeats * num_prompts, costing.by_times), phase)
        best = max(chains, key=lambda name: rate(decoding(search[name])).value)
        gamma = own[best].gamma
        chosen = [c for name, c in greedy.items() if name not in {*chains, *assisted, *skipped} or c.gamma == gamma]
        sampling: list[Contender] = [own[name].at(TEMPERATURE) for name in (PLAIN, best)]
        sampling += [_sampling(hf_contenders[name]) for name in (GENERATE, f"assisted_k{gamma}") if name in greedy]
        phase = TimingPhase(journal, "timed", cold, longest)
        if not phase.is_done(sampling, num_prompts, repeats):
            for contender in sampling:
                once(contender, 0, 0)
        recosting = _Costing(prepared, journal, "timed")
        between = dict(recosting.by_times)
        batched = throughput.Batching(prepared, [own[PLAIN], own[best]], size, bar, journal) if size > 1 else None
        if batched is not None:
            between[batched.turn] = throughput.num_turns(prepared)
        spread = _Spread(repeats * num_prompts, between)
        timed = timings([*chosen, *sampling], num_prompts, repeats, bar, spread, phase)
    together = batched.result() if batched is not None else None
    model = prepared.pair.models["target"]
    assert isinstance(model, HFModel)
    middle = [len(ids) + len(t[0].token_ids) / 2 for ids, t in zip(prepared.prompts, timed[PLAIN], strict=True)]
    context = sum(middle) / len(middle)
    return Measured(
        prepared,
        environment.describe(prepared.pair.models, prepared.pair.text.facts()),
        [*result, *(together.differences if together else ())],
        skipped,
        gamma,
        search,
        timed,
        costing.result(),
        recosting.result(),
        {name: journal.unit(("split", name), partial(_split, own[name])) for name in (PLAIN, best)},
        bandwidth.BandwidthBound(**journal.unit(("floor",), lambda: asdict(bandwidth.measure(model, context)))),
        together,
    )


def _own(prepared: Prepared) -> dict[str, SpecexpContender]:
    named = {}
    for setting in prepared.settings:
        method = setting.config
        name = {"baseline": PLAIN, "speculative": f"chain_k{method.gamma}"}.get(method.method, method.method)
        named[name] = SpecexpContender(name, prepared, setting)
    return named


def _hf_contenders(prepared: Prepared) -> dict[str, HFContender]:
    """The contenders of transformers, with assisted generation at every draft length of the chains."""
    chains = [setting.config.gamma for setting in prepared.settings if setting.config.method == "speculative"]
    plain = plain_peer(prepared.pair, chains)
    models, eos_ids = plain.models, plain.eos_ids
    result = {
        GENERATE: HFContender(GENERATE, prepared, plain),
        FIRST_TOKEN: HFContender(FIRST_TOKEN, prepared, plain, most=1),
        COMPILED: HFContender(COMPILED, prepared, Peer(models, eos_ids, options=peers.compiled())),
        "prompt_lookup": HFContender("prompt_lookup", prepared, Peer(models, eos_ids, options=peers.lookup())),
    }
    for gamma in chains if has_assistant(prepared.pair) else ():
        name = f"assisted_k{gamma}"
        result[name] = HFContender(name, prepared, replace(plain, gamma=gamma))
    return result


def _sampling(contender: HFContender) -> HFContender:
    peer = replace(contender.peer, temperature=TEMPERATURE)
    return HFContender(sampled(contender.name, TEMPERATURE), contender.prepared, peer)


def _outputs(
    prepared: Prepared,
    contenders: Mapping[str, Contender],
    journal: Journal,
    cold: set[str],
    longest: int,
    bar: Any,
) -> tuple[dict[str, list[list[int]]], dict[str, str]]:
    """Each contender's greedy ids on every prompt, and why compiling failed. Removes those that run from `cold`."""
    everyone = range(len(prepared.prompts))
    outputs: dict[str, list[list[int]]] = {}
    failed: dict[str, str] = {}

    def run(contender: Contender, index: int) -> list[int]:
        cold.discard(contender.name)
        return once(contender, index, 0).token_ids

    for name, contender in contenders.items():
        bar.set_postfix_str(name)
        if name == COMPILED:
            reason = journal.unit(("compiled",), partial(_compile_fault, contender, longest))
            if reason is not None:
                failed[name] = reason
                bar.update(len(everyone) * (1 + prepared.experiment.repeats))
                continue
        outputs[name] = []
        for index in everyone:
            outputs[name].append(journal.unit(("output", name, index), partial(run, contender, index)))
            bar.update()
    del outputs[FIRST_TOKEN]
    return outputs, failed


def _compile_fault(contender: Contender, longest: int) -> str | None:
    """Run on the longest prompt, so that the static cache never grows and compiles again; returns why that failed."""
    try:
        once(contender, longest, 0)
    except ModelError:
        raise
    except Exception as error:  # a compiler is an external program and may raise anything
        return first_line(error)
    return None


def _differences(prepared: Prepared, outputs: Mapping[str, list[list[int]]]) -> list[Difference]:
    model = prepared.pair.models["target"]
    assert isinstance(model, HFModel)
    ids = {example.prompt_id: ids for example, ids in zip(prepared.examples, prepared.prompts, strict=True)}
    return differences(prepared.pair, model.module.dtype, ids, outputs, GENERATE)


class _Costing:
    """Measures what calls cost, at several moments of a phase."""

    def __init__(self, prepared: Prepared, journal: Journal, phase: str) -> None:
        self._prepared, self._journal, self._phase = prepared, journal, phase
        self._measured: list[Mapping[str, Any]] = []

    @property
    def by_times(self) -> dict[Callable[[], None], int]:
        """The measurement, and how many of them a phase of timings needs."""
        return {self.measure: -(-self._prepared.experiment.repeats * len(self._prepared.prompts) // EVERY)}

    def measure(self) -> None:
        key = "costs", self._phase, len(self._measured)
        result = self._journal.unit(key, partial(measured_costs.measure_costs, self._prepared))
        assert result is not None, "a benchmark has chains"
        self._measured.append(result)

    def result(self) -> Mapping[str, Any]:
        """Medians of the measurements."""
        result: Mapping[str, Any] = measured_costs.median_of(self._measured)
        return result


class _Spread:
    """Called `calls` times, it does each piece of work the given number of times, evenly spread."""

    def __init__(self, calls: int, by_times: Mapping[Callable[[], None], int]) -> None:
        self._moments = [(work, {i * calls // times for i in range(times)}) for work, times in by_times.items()]
        self._num_called = 0

    def __call__(self) -> None:
        for work, moments in self._moments:
            if self._num_called in moments:
                work()
        self._num_called += 1


def _split(contender: SpecexpContender) -> dict[str, float]:
    """Seconds of each part of an instrumented greedy run, on some of the prompts."""
    prepared = contender.prepared
    return time_split.seconds(
        prepared, contender.setting.decoder, SPLIT_PROMPTS, prepared.experiment.max_new_tokens, 0.0
    )
