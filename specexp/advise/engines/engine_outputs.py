"""Takes the outputs of a served engine along which drafts are scored: their token ids and, where drafts are sampled,
the log-probabilities of these tokens. Each is asked for once and kept in the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from specexp.engines.body import Prompt, Wanted
from specexp.engines.client import EngineClient, Offer
from specexp.engines.stream import Answer
from specexp.errors import EngineError
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.served import Engines
from specexp.pair.tokenization import Text, plain
from specexp.storage.journal import Journal


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """One output. `logprobs` are those of its tokens before any warping, or none; `limit` is how many tokens could be
    emitted; `from_text` is True where the server gives no ids, so that the tokenizer made them of the text."""

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    limit: int
    from_text: bool = False


def take(
    prepared: Prepared, text: Text, ends: Sequence[int], with_logprobs: bool, journal: Journal
) -> list[EngineOutput]:
    """Ask the first engine of `prepared` for the output of each example's first turn.

    `text` has the target's tokens, `ends` are its EOS ids. Raises EngineError where the engine gives too little.
    """
    engine, sources = prepared.served[0].engine, Engines(prepared)
    keys = [("output", index) for index in range(len(prepared.examples))]
    with EngineClient(engine.endpoint) as client:
        offer: Offer | None = None
        for index, key in enumerate(tqdm(keys, desc=f"outputs of {engine.method}", unit="run", dynamic_ncols=True)):
            prompt = sources.prompt(engine, index)

            def ask(prompt: Prompt = prompt, index: int = index) -> dict[str, Any]:
                nonlocal offer
                if offer is None:
                    offer = client.offer(prompt, Wanted(top_logprobs=int(with_logprobs)), engine.switch)
                answer = client.ask(prompt, sources.sampling(0), offer.wanted, engine.switch)
                ids = _prompt_ids(prepared, text, index, prompt, answer)
                try:
                    return asdict(_read(answer, ids, text, ends, prepared, with_logprobs))
                except EngineError as error:
                    raise EngineError(f"engine {engine.endpoint.url}: {error}") from None

            journal.unit(key, ask)
    return [EngineOutput(**journal.unit(key, dict)) for key in keys]


def _prompt_ids(prepared: Prepared, text: Text, index: int, prompt: Prompt, answer: Answer) -> list[int]:
    """The ids that the engine was sent, or says that it read; else those of the text or of the chat template."""
    if answer.prompt_ids:
        return answer.prompt_ids
    if isinstance(prompt, str):
        return plain(text).encode([{"role": "user", "content": prompt}])
    ids = [token for token in prompt if isinstance(token, int)]
    return ids or text.encode(prepared.examples[index].messages())


def _read(
    answer: Answer, prompt_ids: list[int], text: Text, ends: Sequence[int], prepared: Prepared, with_logprobs: bool
) -> EngineOutput:
    """What an answer shows."""
    ids, from_text = answer.token_ids, answer.token_ids is None
    if ids is None:
        if with_logprobs:
            raise EngineError("it gives no token ids, by which log-probabilities are those of tokens; serve with them.")
        ids = tokens_of(answer.text, text)
    logprobs = list(answer.logprobs or ()) if with_logprobs else []
    if with_logprobs and not logprobs:
        raise EngineError(
            "it gives no log-probabilities, which tell how often sampled drafts are accepted; set draft_temperature to"
            " 0, weigh lookup or suffix alone, or serve with logprobs."
        )
    # An EOS may have an id and no log-probability.
    ids = ids[: len(logprobs)] if with_logprobs else answer.with_end(ids, ends, prepared.stop_texts)
    # Of an output that ended at a limit, that was the limit: it may be the server's own context.
    limit = len(ids) if answer.finish_reason == "length" else max(len(ids), prepared.experiment.max_new_tokens)
    return EngineOutput(prompt_ids, ids, logprobs[: len(ids)], limit, from_text)


def tokens_of(output: str, text: Text) -> list[int]:
    """The tokens of an output's text; other ones than the server's may spell it. Raises EngineError."""
    encode: Callable[..., Any] | None = getattr(text, "tokenizer", None)
    if encode is None:
        raise EngineError(
            "it gives no token ids, and there is no tokenizer that makes them of its text; serve with ids."
        )
    return [int(token) for token in encode(output, add_special_tokens=False)["input_ids"]]
