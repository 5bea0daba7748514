"""Runs an experiment: every setting on every prompt, interleaved prompt by prompt, one record each.

The order of the settings turns by one from prompt to prompt, so that none always runs behind the same other. With a
`batch`, several prompts stand in the place of one: a setting decodes them together, a row that is done going on with
the next. Each run starts from an empty cache; prefill is timed apart. Nothing here knows MLflow.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

from tqdm import tqdm

from specexp.config import Experiment, MethodConfig
from specexp.decoding.chain import Chain
from specexp.decoding.protocol import Role
from specexp.decoding.rng import dice_for
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine, Generation, Request
from specexp.errors import ConfigError, ModelError, OutputError, PromptError
from specexp.judge.judge import Judge
from specexp.lm import out_of_memory
from specexp.lm.runtime import ModelConfig
from specexp.methods import Making, decoder_for, roles_of
from specexp.metrics.summary import check_identities, summarise
from specexp.pair.loading import Pair, contexts, hidden_sizes, identity, load_pair
from specexp.profiling import call_costs
from specexp.profiling.time_estimate import Pace, Progress, announce
from specexp.storage import environment
from specexp.storage.records import Record, RecordFile
from specexp.storage.run_folder import OutputFolder
from specexp.tasks.answers import UNRECORDED, VERSION, AnswerRule, version_words
from specexp.tasks.example import Example, Task
from specexp.tasks.sampling import selection
from specexp.tasks.task import notes_of, task

WARM_UP_TOKENS = 24
EARLY = 3  # prompts whose outputs tell how long all of them take
BATCHES = 4  # in a row of one setting: rows idle only behind the last of them
LOWER = "max_new_tokens, gamma or tree_budget"
SIZES = ("target", "tree_draft", "tree_target")  # of costs: seconds by positions
MOMENTS = 12  # of a run at which costs are measured: what else the machine does comes and goes
ROUNDS = 3  # of each kind that are timed at a moment
SHARE = 0.2  # of the time of a run that measuring costs may take, behind the first moment
Summary = dict[tuple[str, int], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One method at one draft length, with its decoder."""

    config: MethodConfig
    decoder: Decoder

    @property
    def own(self) -> bool:
        """Whether a round takes one more draft step, for the row behind its last token."""
        return isinstance(self.decoder, Chain) and self.decoder.rule.needs.own

    @property
    def varies(self) -> bool:
        """Whether a chain may end before gamma tokens by itself."""
        return self.config.method == "lookup" or self.config.min_draft_probability > 0

    @property
    def lengths(self) -> set[int]:
        """Draft lengths whose verifying calls are to be measured: gamma's, and where a draft may stop, some between."""
        gamma = self.config.gamma
        between = {gamma // 2, gamma // 4, gamma // 8} if self.config.min_draft_probability else set()
        return ({gamma} | between) - {0}

    @property
    def rounds(self) -> list[call_costs.TreeRound]:
        """Trees whose calls are to be measured: a full one, and a quarter, since a tree need not fill its budget."""
        tree = self.config.tree
        if tree is None:
            return []
        sizes = sorted({tree.tree_budget, -(-tree.tree_budget // 4)})
        return [call_costs.TreeRound(size, tree.max_depth, tree.parallel_branches) for size in sizes]


@dataclass(frozen=True, slots=True)
class Job:
    """One record to be made."""

    index: int  # of the example
    turn: int
    setting: Setting
    repeat: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """An experiment that can run: everything that could be wrong with it has been looked at.

    `prompts` are the ids of every example's first turn, `notes` what a person should be told before the numbers.
    """

    experiment: Experiment
    task: Task
    examples: list[Example]
    prompts: list[list[int]]
    settings: list[Setting]
    pair: Pair
    judges: Mapping[str, Judge]
    notes: Sequence[str] = ()


def prepare(
    experiment: Experiment,
    judges: Mapping[str, Judge] | None = None,
    check: Callable[[Sequence[Example]], None] = lambda examples: None,
) -> Prepared:
    """Load models and task, check that every prompt fits and every judge is this pair's. Writes nothing.

    `judges` are those that the methods name. `check` sees the examples before any model is loaded, and may raise.
    """
    judges = judges or {}
    rule = AnswerRule(experiment.answer_rule, experiment.answer_pattern)
    chosen = task(experiment.task, experiment.data, experiment.shots, rule=rule)
    examples = chosen.examples(experiment.limit)
    check(examples)
    roles = set[Role]().union(*(roles_of(method) for method in experiment.methods))
    _check_lengths(experiment.methods, min(contexts(experiment, roles).values()))
    pair = load_pair(experiment, roles)
    mine, widths = identity(pair, experiment), hidden_sizes(pair) if judges else {}
    notes = [*pair.notes, *notes_of(chosen)]
    for judge in judges.values():
        judge.check(mine, widths)
        notes += judge.notes(mine)
    making = Making(Warp(experiment.temperature, experiment.top_k, experiment.top_p), judges, pair.eos_ids)
    settings = [Setting(method, decoder_for(method, making)) for method in experiment.methods]
    for setting in settings:
        for role in setting.decoder.models if setting.config.tree else ():
            pair.models[role].check_trees()
    prompts = []
    main_roles = sorted({setting.decoder.models[0] for setting in settings}, reverse=True)
    for example in examples:
        try:
            prompts.append(_checked(example, experiment, pair, main_roles))
        except (PromptError, ModelError) as error:
            raise type(error)(f"prompt '{example.prompt_id}': {error}") from None
    return Prepared(experiment, chosen, examples, prompts, settings, pair, judges, notes)


def _checked(example: Example, experiment: Experiment, pair: Pair, roles: Sequence[Role]) -> list[int]:
    """Ids of the first turn; raises PromptError when a turn is empty, or cannot fit with answers before it."""
    if not all(turn.strip() for turn in example.turns):
        raise PromptError("it is empty; give it some text or leave it out.")
    engine = Engine(pair.models)
    first = pair.text.encode(example.messages())
    for role in roles:
        engine.room_for(first, experiment.max_new_tokens, role)
        if later := len(example.turns) - 1:
            asked = len(pair.text.encode(example.messages(("-",) * later)))
            context = pair.models[role].context
            if asked + later * experiment.max_new_tokens >= context:
                raise PromptError(
                    f"its {later + 1} turns have {asked} tokens, which with {experiment.max_new_tokens} for each answer"
                    f" between them do not fit the {role} model's context of {context}; lower max_new_tokens."
                )
    return first


def inputs_of(prepared: Prepared) -> dict[str, Any]:
    """What timings are of: models, tokenizer, rows, judges, and the machine."""
    facts = environment.describe(prepared.pair.models, prepared.pair.text.facts())
    devices = sorted(str(model.get("device_name", "")) for model in facts["models"].values())
    return {
        **identity(prepared.pair, prepared.experiment),
        "data": prepared.task.dataset().digest,
        "judges": {name: judge.digest() for name, judge in prepared.judges.items()},
        "machine": [facts["processor"], *devices],
    }


def note_inputs(prepared: Prepared, output: OutputFolder) -> None:
    """Write data.json and judges.json; raises OutputError when the folder was begun on other rows or judges, or with
    another version of the answer rule."""
    judges = {name: {"weights": judge.digest(), **asdict(judge.facts)} for name, judge in prepared.judges.items()}
    begun = output.read_json("judges.json")
    if begun is not None and begun != judges:
        raise OutputError(
            f"'{output.path}' was begun with another judge than '{', '.join(judges)}' is now; name another folder."
        )
    now: dict[str, Any] = {**asdict(prepared.task.dataset()), "answer_version": VERSION}
    if words := selection(prepared.task, prepared.experiment.limit):
        now["selection"] = words
    before = output.read_json("data.json")
    if before is not None and (was := before.get("answer_version", UNRECORDED)) != VERSION:
        raise OutputError(
            f"'{output.path}' was begun with {version_words(was)} of the answer rule, and this is version {VERSION};"
            " name another output folder."
        )
    if before is not None and before.get("selection") != now.get("selection"):
        raise OutputError(
            f"'{output.path}' was begun on {before.get('selection') or 'the first rows'}, which are now"
            f" {now.get('selection') or 'the first rows'}. Name another output folder."
        )
    if before is not None and before != now:
        raise OutputError(
            f"'{output.path}' was begun on other rows (SHA-256 {before['digest'][:12]}, now {now['digest'][:12]});"
            " the data has changed since. Name another output folder."
        )
    output.write_json("data.json", now)
    if judges:
        output.write_json("judges.json", judges)


def _check_lengths(methods: Sequence[MethodConfig], context: int) -> None:
    """Refuse drafts that the smaller context cannot hold. Raises ConfigError."""
    for method in methods:
        name, length = ("max_depth", method.tree.max_depth) if method.tree else ("gamma", method.gamma)
        if length and context < 2:
            raise ConfigError(f"the models' context is {context}, which holds no draft; name models with a longer one.")
        if length > context // 2:
            raise ConfigError(f"{name} is {length}; with a context of {context} it must be at most {context // 2}.")


def run(prepared: Prepared, output: OutputFolder, records: RecordFile) -> None:
    """Append every record that is still missing. An interruption leaves whole records only."""
    experiment = prepared.experiment
    groups = list(_groups(prepared, records))
    left = sum(len(jobs) for jobs in groups)
    engine = Engine(prepared.pair.models, prepared.pair.eos_ids, rows=experiment.batch)
    where = _environment(prepared, output)
    peaks = out_of_memory.peaks_of(output.read_json(out_of_memory.FILE))
    try:
        if left:
            with out_of_memory.told("warming up", LOWER, experiment.models):
                paces = _warm_up(prepared, engine)
            if paces:
                _announce(prepared, groups, paces)
        _decode(prepared, output, records, groups, engine, where, peaks)
    finally:
        peaks.take()
        output.write_json(out_of_memory.FILE, peaks.as_dict())


def _decode(
    prepared: Prepared, output: OutputFolder, records: RecordFile, groups: Sequence[Sequence[Job]], engine: Engine,
    where: str, peaks: out_of_memory.Peaks,
) -> None:  # fmt: skip
    experiment = prepared.experiment
    left = sum(len(jobs) for jobs in groups)
    total = sum(len(x.turns) for x in prepared.examples) * len(prepared.settings) * experiment.repeats
    begun = output.read_json("costs.json")
    measured = [] if begun is None else [begun]
    moments = {i * (len(groups) - 1) // (MOMENTS - 1) for i in range(MOMENTS)}
    start, spent = time.perf_counter(), 0.0
    early = EARLY * len(prepared.settings) * experiment.batch
    with tqdm(total=total, initial=total - left, desc=experiment.name, unit="run", dynamic_ncols=True) as bar:
        say = partial(bar.write, file=sys.stderr)
        progress = Progress(left, early, "outputs", say, time.perf_counter)
        num_done = 0
        for number, jobs in enumerate(groups):
            now = time.perf_counter()
            if number in moments and spent <= SHARE * (now - start):
                with out_of_memory.told("measuring calls", LOWER, experiment.models):
                    found = measure_costs(prepared) if experiment.batch == 1 else None
                spent += time.perf_counter() - now
                _check_sizes(output, begun, found)
                measured += [] if found is None else [found]
                output.write_json("costs.json", median_of(measured) if measured else None)
            config = jobs[0].setting.config
            bar.set_postfix_str(config.label, refresh=False)
            with out_of_memory.told(*_at(prepared, jobs)), peaks.watching(config.label):
                for place, out in engine.generate_all(requests(prepared, records, jobs)):
                    record = record_of(prepared, jobs[place], out) | {"environment": where}
                    check_identities(record, config.tree, config.bonus)
                    records.append(record)
                    bar.update()
                    num_done += 1
                    progress.seen(num_done)
    complete(prepared, output)


def complete(prepared: Prepared, output: OutputFolder) -> None:
    """Measure costs once where costs.json was removed after the last record was made."""
    if not (output.path / "costs.json").exists():
        with out_of_memory.told("measuring calls", LOWER, prepared.experiment.models):
            found = measure_costs(prepared) if prepared.experiment.batch == 1 else None
        output.write_json("costs.json", found)


def _check_sizes(output: OutputFolder, begun: Any, found: Any) -> None:
    """Costs are put together with those of an interrupted run, which must be of the same calls."""
    if begun is None:
        return
    calls = [each and (each["draft"] is None, *(set(each[kind]) for kind in SIZES)) for each in (begun, found)]
    if calls[0] != calls[1]:
        raise OutputError(
            f"{output.path / 'costs.json'} is of other calls than these settings make; it was changed by hand. Put it"
            " back as it was, or remove it: costs are measured again."
        )


def requests(prepared: Prepared, records: RecordFile, jobs: Sequence[Job]) -> Iterator[Request]:
    """What the engine is asked for each job; a later turn wants the records of the earlier ones."""
    experiment = prepared.experiment
    for job in jobs:
        name = prepared.examples[job.index].prompt_id
        dice = dice_for(experiment.temperature, experiment.seed + job.repeat, name, job.turn)
        ids = prompt_of(prepared, records, job)
        yield Request(job.setting.decoder, ids, experiment.max_new_tokens, dice, name=name)


def arithmetic_of(experiment: Experiment) -> str:
    """The dtype that the target computes in: int8 casts to float16 at every call."""
    model = experiment.target
    if experiment.toy is not None:
        return "float64"
    return "float16" if model.quantization == "int8" else model.compute_dtype or model.dtype


def _at(prepared: Prepared, jobs: Sequence[Job]) -> tuple[str, str, dict[Role, ModelConfig]]:
    """For who runs out of memory at these jobs: where that is, what to lower, and what is loaded."""
    names = [f"'{prepared.examples[job.index].prompt_id}'" for job in jobs]
    batch = prepared.experiment.batch
    which = f"prompt {names[0]}" if batch == 1 else f"prompts {names[0]} to {names[-1]}, {batch} at a time,"
    lower = LOWER if batch == 1 else f"batch, {LOWER}"
    return f"{which} with {jobs[0].setting.config.label}", lower, prepared.experiment.models


def prompt_of(prepared: Prepared, records: RecordFile, job: Job) -> list[int]:
    """Ids of a turn: behind the baseline's earlier answers, the same for every method, or behind the method's own."""
    if job.turn == 0:
        return prepared.prompts[job.index]
    label = job.setting.config.label
    if prepared.experiment.history == "baseline":
        label = next(s.config.label for s in prepared.settings if s.config.method == "baseline")
    example = prepared.examples[job.index]
    keys = [(example.prompt_id, turn, label, job.repeat) for turn in range(job.turn)]
    return prepared.pair.text.encode(example.messages([records.find(key)["text"] for key in keys]))


def _environment(prepared: Prepared, output: OutputFolder) -> str:
    """Note where this process runs in environments.json; a resumed run may have several."""
    facts = environment.describe(prepared.pair.models, prepared.pair.text.facts())
    name = environment.name_of(facts)
    output.write_json("environments.json", {**(output.read_json("environments.json") or {}), name: facts})
    return name


def summary(prepared: Prepared, output: OutputFolder, records: Sequence[Record]) -> Summary:
    """Metrics by (label, repeat)."""
    found, claimed = costs_of(output.read_json("costs.json")), claims_attainable(output)
    repeats: dict[int, list[Record]] = {}
    for record in records:
        repeats.setdefault(record["repeat"], []).append(record)
    metrics = {repeat: pooled(prepared, found, group, claimed) for repeat, group in sorted(repeats.items())}
    return {(label, repeat): metrics[repeat][label] for label in metrics[0] for repeat in metrics}


def claims_attainable(output: OutputFolder) -> bool:
    """Whether calls cost in decoding what they cost when timed, which no run on CUDA can say."""
    return not any(environment.on_cuda(each) for each in (output.read_json("environments.json") or {}).values())


def pooled(
    prepared: Prepared, measured: call_costs.Costs | None, records: Sequence[Record], claimed: bool = True
) -> dict[str, dict[str, float]]:
    """Metrics by label, of all these records: of one repeat, or of several together."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["label"], []).append(record)
    plain = next((group for group in groups.values() if group[0]["method"] == "baseline"), [])
    return {
        setting.config.label: summarise(
            groups[setting.config.label],
            plain,
            measured,
            setting.config.gamma,
            setting.config.gamma + setting.own,
            setting.varies,
            prepared.experiment.batch,
            claimed,
        )
        for setting in prepared.settings
    }


def costs_of(measured: Mapping[str, Any] | None) -> call_costs.Costs | None:
    """What `measure_costs` found, as costs; from JSON too, where sizes are text."""
    if measured is None:
        return None
    sizes = ({int(n): seconds for n, seconds in measured[kind].items()} for kind in SIZES)
    return call_costs.Costs(measured["draft"], *sizes)


def missing(prepared: Prepared, records: RecordFile) -> int:
    """How many records this experiment still lacks."""
    return sum(len(jobs) for jobs in _groups(prepared, records))


def _groups(prepared: Prepared, records: RecordFile) -> Iterator[list[Job]]:
    """The missing records by what is decoded in one go: jobs of one setting and turn, behind those of earlier turns."""
    done, settings, examples = records.done, prepared.settings, prepared.examples
    batch = prepared.experiment.batch
    size = 1 if batch == 1 else BATCHES * batch
    for repeat in range(prepared.experiment.repeats):
        for number, start in enumerate(range(0, len(examples), size)):
            mine = range(start, min(start + size, len(examples)))
            first = (number + repeat) % len(settings)
            for turn in range(max(len(examples[index].turns) for index in mine)):
                for setting in settings[first:] + settings[:first]:
                    jobs = [
                        Job(index, turn, setting, repeat)
                        for index in mine
                        if turn < len(examples[index].turns)
                        and (examples[index].prompt_id, turn, setting.config.label, repeat) not in done
                    ]
                    if jobs:
                        yield jobs


def _warm_up(prepared: Prepared, engine: Engine) -> dict[str, Pace]:
    """Decode a few tokens with every setting; how fast that was, by label, from the fastest output."""
    dice = dice_for(prepared.experiment.temperature, 0, "warm-up")
    names = [example.prompt_id for example in prepared.examples]
    some = list(zip(names, prepared.prompts, strict=True))[: max(2, prepared.experiment.batch)]
    paces = {}
    for setting in prepared.settings:
        requests = [Request(setting.decoder, ids, WARM_UP_TOKENS, dice, name=name) for name, ids in some]
        found = [Pace.of(out) for _, out in engine.generate_all(requests)]
        paces[setting.config.label] = min(found, key=lambda each: each.seconds(WARM_UP_TOKENS))
    return paces


def _announce(prepared: Prepared, groups: Sequence[Sequence[Job]], paces: Mapping[str, Pace]) -> None:
    """Say how long the missing records take, as long and as slow as the warm-up makes one expect."""
    most = prepared.experiment.max_new_tokens
    labels = [job.setting.config.label for jobs in groups for job in jobs]
    what = f"{len(labels)} outputs of up to {most} tokens, as fast as the first {WARM_UP_TOKENS} were"
    lower = "limit, max_new_tokens, repeats or the number of settings"
    announce(sum(paces[label].seconds(most) for label in labels), what, lower)


def measure_costs(prepared: Prepared, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any] | None:
    """Seconds per call where the middle of an output stands; None when nothing is verified."""
    gammas = sorted(set().union(*(setting.lengths for setting in prepared.settings)))
    trees = list({x.nodes: x for setting in prepared.settings for x in setting.rounds}.values())
    if not gammas and not trees:
        return None
    ahead = max(call_costs.ROW, *gammas, *(tree.depth for tree in trees)) + 1
    length = max(len(ids) for ids in prepared.prompts)
    ids = prepared.prompts[0]
    room = min(model.context for model in prepared.pair.models.values()) - ahead
    behind = (ids * (length // len(ids) + 2))[: min(length + 32, room)]
    found = call_costs.measure(prepared.pair.models, behind, gammas, trees, ROUNDS, clock)
    return {
        "context": len(behind),
        "draft": found.draft_step,
        **{kind: _by_text(getattr(found, kind)) for kind in SIZES},
    }


def _by_text(seconds: Mapping[int, float]) -> dict[str, float]:
    """Sizes as JSON has them."""
    return {str(n): each for n, each in seconds.items()}


def median_of(measured: Sequence[Any]) -> Any:
    """Of numbers; and of the numbers in mappings of one shape, one by one."""
    if isinstance(measured[0], Mapping):
        return {key: median_of([each[key] for each in measured]) for key in measured[0]}
    return None if measured[0] is None else median(measured)


def record_of(prepared: Prepared, job: Job, out: Generation) -> Record:
    """One job's record, without where it was made."""
    example, method = prepared.examples[job.index], job.setting.config
    text = prepared.pair.text.decode(out.token_ids[:-1] if out.finish_reason == "stop" else out.token_ids)
    last = job.turn == len(example.turns) - 1  # the turn that a gold answer belongs to
    gold = example.answer if last else None
    answer = prepared.task.extract(text, out.finish_reason == "stop", gold) if last else None
    return {
        "prompt_id": example.prompt_id,
        "turn": job.turn,
        "category": example.category,
        "paired": job.turn == 0 or prepared.experiment.history == "baseline",
        "method": method.method,
        "preset": method.preset,
        "label": method.label,
        "repeat": job.repeat,
        "seed": prepared.experiment.seed + job.repeat,
        "text": text,
        "answer": answer,
        "gold": gold,
        "correct": None if gold is None else answer == gold,
        **{name: getattr(out, name) for name in Generation.__dataclass_fields__},
        "settings_hash": prepared.experiment.hash,
    }
