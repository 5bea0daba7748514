"""Prepares an experiment's run: loads and checks models, task, prompts, decoders and judges.

What can be checked before weights are read is checked first: settings, contexts, tokenizers and prompts. Writes nothing
but the inputs that a folder started with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specexp.answers.rules import UNRECORDED, VERSION, version_words
from specexp.config import Experiment, MethodConfig
from specexp.decoding.chain import Chain
from specexp.decoding.protocol import Role
from specexp.engine import Decoder, Ending, ThinkingBudget, output_limit
from specexp.engines.served_methods import ServedMethod
from specexp.errors import OutputError, PromptError
from specexp.judge.judge import Judge
from specexp.lm import out_of_memory
from specexp.method_specs import MethodSpec, spec
from specexp.methods import BuildContext, check_judge, decoder_for, is_lossless, main_role, roles_of
from specexp.pair.first_look import check_lengths
from specexp.pair.loading import Pair, contexts, hidden_sizes, identity, load_pair, load_text
from specexp.pair.stop_strings import StopStrings, TokenBytes
from specexp.pair.thinking import Thinking, budget_of, thinking_changed, thinking_notes, thinking_of
from specexp.pair.tokenization import Text
from specexp.profiling import call_costs
from specexp.profiling.time_estimate import announce, pace
from specexp.sequences.lazy import lazily
from specexp.sequences.token_ids import TokenIds
from specexp.storage import environment
from specexp.storage.run_folder import OutputFolder
from specexp.tasks.example import Example, Task, naming, prompt_id_of
from specexp.tasks.sampling import selection
from specexp.tasks.task import notes_of, stops_of


@dataclass(frozen=True, slots=True)
class PreparedMethod:
    """One method at one draft length, with its decoder."""

    config: MethodConfig
    decoder: Decoder
    lossless: bool = True  # True if the output has the target's distribution

    @property
    def facts(self) -> MethodSpec:
        """The facts about the method that do not depend on its settings."""
        return spec(self.config.method)

    @property
    def feed_last_token(self) -> bool:
        """True if a round takes one more draft step, for the hidden state of its last token."""
        return isinstance(self.decoder, Chain) and self.decoder.rule.needs.feed_last_token

    @property
    def varies(self) -> bool:
        """True if a chain may by itself end before gamma tokens."""
        return self.facts.may_end_early or self.config.min_draft_probability > 0 or self.config.auto_gamma

    @property
    def by_token(self) -> bool:
        """True unless chains are verified as blocks, which at temperature 0 is the same."""
        decoder = self.decoder
        return not isinstance(decoder, Chain) or decoder.verification == "token" or decoder.warp.greedy

    @property
    def lengths(self) -> set[int]:
        """Draft lengths whose verifying calls are measured: gamma, and some shorter ones if a draft may stop early."""
        gamma = self.config.gamma
        ends = self.config.min_draft_probability or self.config.suffix_factor or self.config.auto_gamma
        between = {gamma // 2, gamma // 4, gamma // 8} if ends else set()
        return ({gamma} | between) - {0}

    @property
    def rounds(self) -> list[call_costs.TreeRound]:
        """Trees whose calls are measured: a full one and a quarter of it, since a tree need not fill its budget."""
        tree = self.config.tree
        if tree is None:
            return []
        sizes = sorted({tree.tree_budget, -(-tree.tree_budget // 4)})
        return [call_costs.TreeRound(size, tree.max_depth, tree.parallel_branches) for size in sizes]


@dataclass(frozen=True, slots=True)
class ServedSetting:
    """One served engine; what it emits is not claimed to be lossless."""

    config: MethodConfig
    engine: ServedMethod
    lossless: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """An experiment that is loaded, checked and ready to run.

    `prompts` are the ids of every example's first turn; `notes` are messages for the user, shown before the results.
    """

    experiment: Experiment
    task: Task
    examples: Sequence[Example]
    prompts: Sequence[list[int]]
    settings: list[PreparedMethod]
    pair: Pair
    judges: Mapping[str, Judge]
    notes: Sequence[str] = ()
    stop: StopStrings | None = None
    thinking: Thinking | None = None  # how the target marks its thoughts, if its tokenizer says so
    budget: ThinkingBudget | None = None  # for thoughts
    served: Sequence[ServedSetting] = ()
    stop_texts: tuple[str, ...] = ()

    @property
    def everything(self) -> list[PreparedMethod | ServedSetting]:
        """Our settings and the engines, in the order of the experiment's methods."""
        known: dict[str, PreparedMethod | ServedSetting] = {each.config.label: each for each in self.settings}
        known |= {each.config.label: each for each in self.served}
        return [known[method.label] for method in self.experiment.methods]

    @property
    def ending(self) -> Ending:
        """Where an output ends before its limit."""
        return Ending(self.experiment.min_new_tokens, self.experiment.ignore_eos, self.stop, self.budget)


def prepare(
    experiment: Experiment,
    judges: Mapping[str, Judge] | None = None,
    check: Callable[[Sequence[Example]], None] = lambda examples: None,
    same_tokens: bool = False,
    load: Callable[..., Pair] = load_pair,
) -> Prepared:
    """Load models and task; check that every prompt fits and every judge was made for this pair. Writes nothing.

    `judges` are those that the methods name. `check` is called with the examples before any model is loaded and may
    raise. `load` takes what `load_pair` takes; its models may be descriptions of models that are loaded elsewhere.
    """
    judges = judges or {}
    for method in experiment.methods:
        if method.judge in judges:
            check_judge(method, judges[method.judge])
    chosen = experiment.read_task()
    examples = chosen.examples(experiment.limit)
    check(examples)
    engines = {each.method: each for each in experiment.engine}
    methods = [method for method in experiment.methods if method.method not in engines]
    roles = set[Role]().union(*(roles_of(method) for method in methods))
    if methods:
        check_lengths(methods, min(contexts(experiment, roles).values()))
    prompts: Sequence[list[int]] = ()

    def encode(text: Text, lengths: Mapping[Role, int]) -> None:
        budget = budget_of(text, experiment.thinking_budget)  # refused before weights are read
        most = Ending(thinking=budget).most(experiment.max_new_tokens)
        main_roles = sorted({main_role(method) for method in methods}, reverse=True)
        main_contexts = {role: lengths[role] for role in main_roles}

        def ids_of(index: int) -> list[int]:
            with naming(examples[index]):
                return text.encode(examples[index].messages())

        def check_one(index: int, ids: list[int]) -> None:
            with naming(examples[index]):
                _check(examples[index], ids, text, experiment.max_new_tokens, most, main_contexts)

        nonlocal prompts
        prompts = TokenIds(ids_of, len(examples), check_one)

    pair = load(experiment, roles, check=encode, same_tokens=same_tokens) if methods else load_text(experiment, encode)
    pair_identity, widths = identity(pair, experiment), hidden_sizes(pair) if judges else {}
    thinking, budget = thinking_of(pair.text), budget_of(pair.text, experiment.thinking_budget)
    notes = [*pair.notes, *notes_of(chosen), *thinking_notes(thinking, examples)]
    for judge in judges.values():
        judge.check(pair_identity, widths)
        notes += judge.notes(pair_identity)
    context = BuildContext(experiment.warp, judges, pair.eos_ids, vocabulary=pair.vocabulary)
    settings = [
        PreparedMethod(
            method, decoder_for(method, context), is_lossless(method, experiment.warp, judges.get(method.judge))
        )
        for method in methods
    ]
    for setting in settings:
        for role in setting.decoder.models if setting.config.tree else ():
            pair.models[role].check_trees()
    strings = experiment.stop or stops_of(chosen)
    stop = None
    if strings and methods:
        stop = StopStrings(strings, TokenBytes(pair.text), in_prompt=bool(experiment.stop))
    served = [ServedSetting(each, engines[each.method]) for each in experiment.methods if each.method in engines]
    return Prepared(
        experiment,
        chosen,
        examples,
        prompts,
        settings,
        pair,
        judges,
        notes,
        stop,
        thinking,
        budget,
        served,
        tuple(strings),
    )


def _check(
    example: Example, ids: Sequence[int], text: Text, max_new_tokens: int, most: int, contexts: Mapping[Role, int]
) -> None:  # fmt: skip
    """Raise PromptError if a turn is empty, or cannot fit after earlier outputs, each of at most `most` tokens with its
    thought. `ids` are those of the first turn."""
    if not all(turn.strip() for turn in example.turns):
        raise PromptError("it is empty; give it some text or leave it out.")
    for role, context in contexts.items():
        output_limit(ids, max_new_tokens, context, role)
        if later := len(example.turns) - 1:
            asked = len(text.encode(example.messages(("-",) * later)))
            if asked + later * most >= context:
                lower = "max_new_tokens" + (" or thinking_budget" if most > max_new_tokens else "")
                raise PromptError(
                    f"its {later + 1} turns have {asked} tokens, which with {most} for each output"
                    f" between them do not fit the {role} model's context of {context}; lower {lower}."
                )


def inputs_of(prepared: Prepared) -> dict[str, Any]:
    """Return what timings depend on: models, tokenizer, rows, judges, and the machine."""
    facts = environment.describe(prepared.pair.models, prepared.pair.text.facts())
    devices = sorted(str(model.get("device_name", "")) for model in facts["models"].values())
    return {
        **identity(prepared.pair, prepared.experiment),
        "data": prepared.task.dataset().digest,
        "judges": {name: judge.digest() for name, judge in prepared.judges.items()},
        "machine": [facts["processor"], *devices],
    }


def note_inputs(prepared: Prepared, output: OutputFolder) -> None:
    """Write data.json and judges.json. Raises OutputError if the folder was started with other rows or judges, or with
    another version of the answer rule."""
    judges = {name: {"weights": judge.digest(), **asdict(judge.facts)} for name, judge in prepared.judges.items()}
    begun = output.read_json("judges.json")
    if begun is not None and begun != judges:
        raise OutputError(
            f"'{output.path}' was begun with judge files other than those of '{', '.join(judges)}' now; name another"
            " output folder."
        )
    now: dict[str, Any] = {**asdict(prepared.task.dataset()), "answer_version": VERSION}
    if words := selection(prepared.task, prepared.experiment.limit):
        now["selection"] = words
    if prepared.thinking is not None:
        now["thinking_end"] = prepared.thinking.end
    before = output.read_json("data.json")
    if before is not None and (was := before.get("answer_version", UNRECORDED)) != VERSION:
        raise OutputError(
            f"'{output.path}' was begun with {version_words(was)} of the answer rule, and this is version {VERSION};"
            " name another output folder."
        )
    if before is not None and before.get("selection") != now.get("selection"):
        raise OutputError(
            f"'{output.path}' was begun on {before.get('selection') or 'the first rows'}; these settings now select"
            f" {now.get('selection') or 'the first rows'}. Name another output folder."
        )
    if before is not None and (fault := thinking_changed(output.path, before, now)):
        raise OutputError(fault)
    if before is not None and before != now:
        raise OutputError(
            f"'{output.path}' was begun on other rows (SHA-256 {before['digest'][:12]}, now {now['digest'][:12]});"
            " the data has changed since. Name another output folder."
        )
    output.write_json("data.json", now)
    if judges:
        output.write_json("judges.json", judges)


def arithmetic_of(experiment: Experiment) -> str:
    """Return the dtype that the target computes in: int8 casts to float16 at every call."""
    model = experiment.target
    if experiment.toy is not None:
        return "float64"
    return "float16" if model.quantization == "int8" else model.compute_dtype or model.dtype


def announce_runs(prepared: Prepared, outputs: int) -> None:
    """Call `announce` for this number of outputs, each assumed to be as slow as plain decoding."""
    if not outputs:
        return
    with out_of_memory.translate_oom("a few timed calls", "max_new_tokens", prepared.experiment.models):
        names = lazily(prompt_id_of, prepared.examples)
        result = pace(prepared.pair.models, prepared.prompts, names=names)
    most = prepared.experiment.max_new_tokens
    what = f"{outputs} outputs of up to {most} tokens, each as slow as plain decoding ({1 / result.token:.3g} tokens/s)"
    announce(outputs * result.seconds(most), what, "limit, max_new_tokens or the number of settings")
