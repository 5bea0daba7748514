"""The `openai` client works against `serve`: completions, chat, streams, errors, and too many requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

openai = pytest.importorskip("openai", reason="openai is not installed; make test-served runs this")

from helpers.openai_process import in_thread  # noqa: E402
from specexp.api import LoadedPair  # noqa: E402
from specexp.config import single  # noqa: E402
from specexp.serving.completion_service import CompletionService, ServiceLimits  # noqa: E402
from specexp.serving.openai_app import make_app  # noqa: E402
from specexp.tasks.task import task  # noqa: E402

pytestmark = pytest.mark.slow
PROMPT = task("arith").examples(1)[0].turns[0]
ASKED = single.resolve("arith_quick", "speculative", {"gamma": "4"})


@pytest.fixture(scope="module")
def pair() -> LoadedPair:
    return LoadedPair(ASKED)


@pytest.fixture(scope="module")
def client(pair: LoadedPair) -> Iterator[openai.OpenAI]:
    service = CompletionService(pair, ASKED, ServiceLimits(1, 1, 500), "arith")
    with in_thread(make_app(service, ["a key"])) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="a key", max_retries=0)


def test_completions_and_chats_are_those_of_generate(client: openai.OpenAI, pair: LoadedPair) -> None:
    out = pair.generate(PROMPT, gamma=4, max_new_tokens=30, temperature=1, seed=4)
    sampling = {"max_tokens": 30, "temperature": 1, "seed": 4}
    answer = client.completions.create(model="arith", prompt=PROMPT, logprobs=2, **sampling)
    assert answer.choices[0].text == out.text
    assert answer.usage.completion_tokens == len(out.token_ids) == len(answer.choices[0].logprobs.tokens)
    assert 0 < answer.usage.accepted <= answer.usage.drafted
    chat = client.chat.completions.create(
        model="arith", messages=[{"role": "user", "content": PROMPT}], logprobs=True, top_logprobs=1, **sampling
    )
    assert chat.choices[0].message.content == out.text
    assert [len(each.top_logprobs) for each in chat.choices[0].logprobs.content] == [1] * len(out.token_ids)
    assert [model.id for model in client.models.list()] == ["arith"]


def test_streams_are_the_answers_in_pieces(client: openai.OpenAI, pair: LoadedPair) -> None:
    out = pair.generate(PROMPT, gamma=4, max_new_tokens=30, temperature=0)
    given = {"model": "arith", "max_tokens": 30, "temperature": 0, "stream": True}
    *chunks, last = client.completions.create(prompt=PROMPT, stream_options={"include_usage": True}, **given)
    assert "".join(chunk.choices[0].text for chunk in chunks) == out.text
    assert last.usage.completion_tokens == len(out.token_ids)
    chats = list(client.chat.completions.create(messages=[{"role": "user", "content": PROMPT}], **given))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chats) == out.text
    assert chats[-1].choices[0].finish_reason in ("stop", "length")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client.completions.create(model="arith", prompt=PROMPT, temperature=-1)
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="arith"):
        client.completions.create(model="other", prompt=PROMPT)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_a_full_queue_is_told_and_retried(client: openai.OpenAI) -> None:
    """One output is decoded, one waits; the third is refused, and succeeds by the client's retries when they end."""
    given = {"model": "arith", "prompt": PROMPT, "temperature": 0, "extra_body": {"ignore_eos": True}}
    streams = [client.completions.create(max_tokens=400, stream=True, **given) for _ in range(2)]
    with pytest.raises(openai.RateLimitError) as refused:
        client.completions.create(max_tokens=2, **given)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    answers = []
    waiting = client.with_options(max_retries=20)
    thread = threading.Thread(target=lambda: answers.append(waiting.completions.create(max_tokens=2, **given)))
    thread.start()
    for stream in streams:
        stream.close()
    thread.join(120)
    assert answers[0].usage.completion_tokens == 2
