"""The Python API: load an experiment's pair once, then decode prompts with any method. It writes no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

from specexp import config
from specexp.config import Experiment, MethodConfig
from specexp.config.single import check_bytes, checked_messages, most_bytes
from specexp.decoding.draft_length import NOMINAL, RelativeCosts
from specexp.decoding.protocol import Role
from specexp.decoding.rng import rng_for
from specexp.draft_faults import head_faults, vocabulary_faults
from specexp.engine import Ending, Engine, Generation, Request, output_limit
from specexp.engine.ending import StopRule
from specexp.engine.request_state import Decoder
from specexp.errors import ConfigError
from specexp.judge.judge import Judge
from specexp.method_specs import takers
from specexp.methods import BuildContext, decoder_for
from specexp.pair.detokenizer import Pieces
from specexp.pair.loading import Pair, PromptCheck, hidden_sizes, identity, load_pair
from specexp.pair.stop_strings import StopStrings, TokenBytes, text_of
from specexp.pair.thinking import budget_of
from specexp.pair.tokenization import Text
from specexp.profiling import call_costs
from specexp.tasks.example import Message

COST_CONTEXT = 64  # tokens after which calls are timed for drafts that adapt


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a method for a prompt. `counts` are the integers and seconds of an evaluation's records."""

    text: str
    token_ids: list[int]
    finish_reason: str  # stop, stop_string, length or context
    counts: dict[str, Any]

    @property
    def tokens_per_call(self) -> float:
        """Tokens emitted per verifying target call; 0 for a method without target calls."""
        calls = self.counts["num_target_calls"]
        return len(self.token_ids) / calls if calls else 0.0


def encoded(messages: Sequence[Message], text: Text, longest: int, context: int, role: Role) -> list[int]:
    """Return the ids of a prompt, of which a token has at most `longest` bytes.

    Raises PromptError if it does not fit this model's context; one that is far too long is not even tokenized.
    """
    check_bytes(messages, most_bytes(context, longest))
    ids = text.encode(messages)
    output_limit(ids, 1, context, role)
    return ids


def _request(
    decoder: Decoder, ids: Sequence[int], asked: Experiment, prompt_id: str, ending: Ending,
    on_tokens: Callable[[Sequence[int]], object] | None = None,
) -> Request:  # fmt: skip
    rng = rng_for(asked.temperature, asked.seed, prompt_id)
    return Request(decoder, ids, asked.max_new_tokens, rng, on_tokens, prompt_id, ending=ending)


class LoadedPair:
    """A target and a draft model, ready to decode. Made by `specexp.load`; `roles` are the models that are loaded."""

    def __init__(
        self,
        experiment: Experiment,
        settings: Mapping[str, Any] | None = None,
        roles: Set[Role] = frozenset({"target", "draft"}),
        check: PromptCheck = lambda text, contexts: None,
        draft_costs: RelativeCosts | None = None,
    ) -> None:
        self.experiment = experiment
        self._settings = {key: value for key, value in (settings or {}).items() if key in takers()}
        self._known: dict[str, Judge] = {}
        self._pair: Pair = load_pair(experiment, roles, own_prompts=True, check=check)
        self.notes = list(self._pair.notes)  # on how prompts are encoded, and on judges that were mined differently
        self._engine = self.engine()
        self._longest = self._pair.text.longest()
        self._draft_costs = draft_costs
        self.spelled_by = self._pair.text  # spells tokens for stop strings
        self._spell: TokenBytes | None = None

    def generate(
        self,
        prompt: str | Sequence[Message],
        method: str = "speculative",
        *,
        gamma: int | str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        ignore_eos: bool | None = None,
        thinking_budget: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        prompt_id: str = "",
        on_text: Callable[[str], object] | None = None,
    ) -> Output:
        """Decode one prompt with a method preset; settings left out are those given to `load`, else the experiment's.

        `prompt` is the user's text, or the messages of a conversation (`{"role": ..., "content": ...}`), the last of
        which is the user's. `on_text` receives the text piece by piece, as rounds are committed. The same prompt, seed
        and `prompt_id` give the same tokens; with gamma "auto" and a temperature above 0, those of this loaded pair
        (`draft_costs`). Raises ConfigError with every fault of the settings, and PromptError for a prompt that does not
        fit.
        """
        given = {
            "methods": method, "gamma": gamma, "temperature": temperature, "top_k": top_k, "top_p": top_p,
            "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "ignore_eos": ignore_eos, "stop": stop,
            "thinking_budget": thinking_budget, "seed": seed,
        }  # fmt: skip
        asked = config.adjusted(self.experiment, given, self._settings)
        if len(asked.methods) != 1:
            raise ConfigError(f"method '{method}' names {len(asked.methods)} settings; name one.")
        return self.decode(prompt, asked, prompt_id, on_text)

    def decode(
        self,
        prompt: str | Sequence[Message],
        asked: Experiment,
        prompt_id: str = "",
        on_text: Callable[[str], object] | None = None,
    ) -> Output:
        """Decode one prompt with the first method of `asked`, an experiment with the same pair."""
        request = self.request(prompt, asked, prompt_id)
        pieces = self.pieces(request, asked, on_text) if on_text else None
        out = self._engine.generate(
            request.decoder, request.prompt_ids, request.max_new_tokens, request.rng, pieces.add if pieces else None,
            request.name, request.ending,
        )  # fmt: skip
        if pieces:
            pieces.close()
        return self.output(out, request, asked)

    def pieces(
        self, request: Request, asked: Experiment, on_text: Callable[[str], object], text: Text | None = None
    ) -> Pieces:
        """Return what turns the tokens of a request into pieces of text, up to a stop string."""
        stop, ends = self.stop_of(asked), () if asked.ignore_eos else self._pair.eos_ids
        return Pieces(text or self._pair.text, ends, on_text, stop.begin(request.prompt_ids) if stop else None)

    def stop_of(self, asked: Experiment) -> StopStrings | None:
        """Return the stop strings of these settings, if there are any."""
        if not asked.stop:
            return None
        self._spell = self._spell or TokenBytes(self.spelled_by)
        return StopStrings(asked.stop, self._spell)

    def engine(self, max_batch_size: int = 1, reuse: bool = False, score_patience: int = 0) -> Engine:
        """Return another engine on these models; the parameters are the engine's."""
        return Engine(
            self._pair.models, self._pair.eos_ids, max_batch_size=max_batch_size, reuse=reuse,
            score_patience=score_patience,
        )  # fmt: skip

    def request(
        self,
        prompt: str | Sequence[Message],
        asked: Experiment,
        prompt_id: str = "",
        on_tokens: Callable[[Sequence[int]], object] | None = None,
        text: Text | None = None,
    ) -> Request:
        """Return an engine's request. Raises PromptError for a prompt that is empty, not a text, or does not fit.

        `text` is a copy of this pair's `text`, for use in another thread.
        """
        messages = checked_messages(prompt)
        decoder = self.decoder(asked)
        role = decoder.models[0]
        ids = encoded(messages, text or self._pair.text, self._longest, self._pair.models[role].context, role)
        return _request(decoder, ids, asked, prompt_id, self._ending(asked, self.stop_of(asked)), on_tokens)

    def request_of_ids(
        self, ids: Sequence[int], asked: Experiment, prompt_id: str = "", stop: StopRule | None = None
    ) -> Request:
        """Return a request for a prompt that is already encoded, which `stop` ends. Raises as `request` does."""
        decoder = self.decoder(asked)
        output_limit(ids, 1, self.context_of(decoder.models[0]), decoder.models[0])
        return _request(decoder, ids, asked, prompt_id, self._ending(asked, stop))

    def _ending(self, asked: Experiment, stop: StopRule | None) -> Ending:
        """Where outputs end; raises ModelError for a budget of thoughts that the tokenizer does not mark."""
        budget = budget_of(self._pair.text, asked.thinking_budget)
        return Ending(asked.min_new_tokens, asked.ignore_eos, stop, budget)

    def decoder(self, asked: Experiment) -> Decoder:
        """Return the decoder of the first method of `asked`. Raises ConfigError or JudgeError if this pair has none."""
        method = asked.methods[0]
        self.judge_of(method)
        faults = vocabulary_faults(asked.methods, self._pair.vocabulary)
        if asked.draft.head:
            faults += head_faults(asked.methods, asked.draft)
        if faults:
            raise ConfigError(faults)
        costs = self.draft_costs(method) or NOMINAL
        making = BuildContext(asked.warp, self._known, self._pair.eos_ids, costs, self._pair.vocabulary)
        return decoder_for(method, making)

    def context_of(self, role: Role) -> int:
        """Return the most positions that a sequence may have in one model."""
        return self._pair.models[role].context

    def most_bytes(self, role: Role) -> int:
        """Return the most bytes of a prompt that is encoded at all: a longer one cannot fit this model's context."""
        return most_bytes(self._pair.models[role].context, self._longest)

    @property
    def text(self) -> Text:
        """The tokenization: converts texts to ids and back."""
        return self._pair.text

    def output(self, out: Generation, request: Request, asked: Experiment, text: Text | None = None) -> Output:
        """Convert an engine's result to an output with text."""
        counts = asdict(out)
        tokens, reason = counts.pop("token_ids"), counts.pop("finish_reason")
        read = text_of(text or self._pair.text, tokens, reason, self.stop_of(asked), request.prompt_ids)
        return Output(read, tokens, reason, counts)

    @property
    def context(self) -> int:
        """The most positions that a sequence may have."""
        return min(model.context for model in self._pair.models.values())

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end an output."""
        return self._pair.eos_ids

    def vocab_size(self, role: Role) -> int:
        """Return how many ids a model has."""
        return self._pair.models[role].vocab_size

    def identity(self) -> dict[str, Any]:
        """Return what was loaded: fingerprints of weights, hashes of tokenizer and template, names and revisions."""
        result = {role: model.facts().get("revision") or "" for role, model in self._pair.models.items()}
        return {
            **identity(self._pair, self.experiment),
            **{f"{role}_revision": revision for role, revision in result.items()},
        }

    def draft_costs(self, method: MethodConfig) -> RelativeCosts | None:
        """Return what calls cost, by which drafts of gamma auto end: measured at the first use. None for other gammas.

        Where tokens are sampled, other costs give other tokens, of the same distribution.
        """
        if not method.auto_gamma:
            return None
        if self._draft_costs is None or len(self._draft_costs.target) <= method.max_gamma:
            space = self.context - method.max_gamma - 1
            ids = [0] * max(1, min(COST_CONTEXT, space))
            self._draft_costs = call_costs.relative_costs(self._pair.models, ids, method.max_gamma)
        return self._draft_costs

    def judge_of(self, method: MethodConfig) -> Judge | None:
        """Return the judge that a method names, loaded once and checked against this pair. Raises JudgeError."""
        if not method.judge:
            return None
        if method.judge not in self._known:
            from specexp.judge import registry  # imports MLflow, so only if a judge is named

            judge = registry.load(method.judge)
            pair_identity = identity(self._pair, self.experiment)
            judge.check(pair_identity, hidden_sizes(self._pair))
            self.notes += judge.notes(pair_identity)
            self._known[method.judge] = judge
        return self._known[method.judge]


def load(experiment: str = "arith_quick", **settings: Any) -> LoadedPair:
    """Load the pair of an experiment preset; settings override the preset as with `mlflow run -P`.

    `specexp.load("arith_quick", target="./my-target", draft="./my-draft", temperature=0.7)`. Raises ConfigError with
    every fault of the settings, and ModelError if a model cannot be loaded.
    """
    return LoadedPair(config.resolve(experiment, settings), settings)
