"""The Python door: load an experiment's pair once, then decode prompts with any method. It writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from specexp import config
from specexp.config import Experiment, MethodConfig
from specexp.decoding.dice import dice_for
from specexp.decoding.rules import Warp
from specexp.engine import Engine, Generation
from specexp.errors import ConfigError
from specexp.evaluation.methods import Making, decoder_for
from specexp.evaluation.pair import Pair, identity, load_pair
from specexp.judge.judge import Judge


@dataclass(frozen=True, slots=True)
class Output:
    """What a method made of a prompt. `counts` are the integers and seconds of an evaluation's records."""

    text: str
    token_ids: list[int]
    finish_reason: str  # stop, length or context
    counts: dict[str, Any]

    @property
    def tokens_per_call(self) -> float:
        """Tokens emitted per verifying target call; 0 for a method that calls no target."""
        calls = self.counts["num_target_calls"]
        return len(self.token_ids) / calls if calls else 0.0


class LoadedPair:
    """A target and a draft model, ready to decode. Made by `specexp.load`."""

    def __init__(self, experiment: Experiment, settings: Mapping[str, Any] | None = None) -> None:
        self.experiment = experiment
        self._settings = {key: value for key, value in (settings or {}).items() if key in config.TAKERS}
        self._known: dict[str, Judge] = {}
        self._pair: Pair = load_pair(experiment, {"target", "draft"})
        self._engine = Engine(self._pair.models, self._pair.eos_ids)

    def generate(
        self,
        prompt: str,
        method: str = "speculative",
        *,
        gamma: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        prompt_id: str = "",
    ) -> Output:
        """Decode one prompt with a method preset; what is not given is as `load` was given it, or the experiment's.

        The same prompt, seed and `prompt_id` give the same tokens. Raises ConfigError with every fault of the
        settings, PromptError for a prompt that does not fit.
        """
        given = {
            "methods": method, "gamma": gamma, "temperature": temperature, "top_k": top_k, "top_p": top_p,
            "max_new_tokens": max_new_tokens, "seed": seed,
        }  # fmt: skip
        asked = config.adjusted(self.experiment, given, self._settings)
        if len(asked.methods) != 1:
            raise ConfigError(f"method '{method}' names {len(asked.methods)} settings; name one.")
        warp = Warp(asked.temperature, asked.top_k, asked.top_p)
        decoder = decoder_for(asked.methods[0], Making(warp, self._judges(asked.methods[0]), self._pair.eos_ids))
        ids = self._pair.text.encode([{"role": "user", "content": prompt}])
        dice = dice_for(asked.temperature, asked.seed, prompt_id)
        out: Generation = self._engine.generate(decoder, ids, asked.max_new_tokens, dice)
        counts = asdict(out)
        tokens, reason = counts.pop("token_ids"), counts.pop("finish_reason")
        text = self._pair.text.decode(tokens[:-1] if reason == "stop" else tokens)
        return Output(text, tokens, reason, counts)

    def _judges(self, method: MethodConfig) -> dict[str, Judge]:
        if method.judge and method.judge not in self._known:
            from specexp.judge import registry  # MLflow, for those who name a judge

            judge = registry.load(method.judge)
            judge.check(identity(self._pair, self.experiment))
            self._known[method.judge] = judge
        return self._known


def load(experiment: str = "arith_quick", **settings: Any) -> LoadedPair:
    """Load the pair of an experiment preset, with settings laid over it as `mlflow run -P` would.

    `specexp.load("arith_quick", target="./my-target", draft="./my-draft", temperature=0.7)`. Raises ConfigError with
    every fault of the settings, ModelError when a model cannot be loaded.
    """
    return LoadedPair(config.resolve(experiment, settings), settings)
