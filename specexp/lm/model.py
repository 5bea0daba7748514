"""The interface that every language model implements: the numpy toy and the Hugging Face models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from array_api_compat import array_namespace

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import Rng

Array = Any


@dataclass(frozen=True, slots=True)
class Branches:
    """The positions and the attention pattern of fed tokens that form a tree instead of a chain.

    Slots below `base` are a chain that all later tokens attend to. The token in slot base + i has the position
    base + depths[i] and attends, from the base on, to the slots base + a for a in ancestors[i] (itself included) only.
    """

    base: int
    depths: Sequence[int]
    ancestors: Sequence[Sequence[int]]


class Session(Protocol):
    """One sequence in one model's KV cache: a row of slots, to which `feed` appends and which `truncate` shortens."""

    @property
    def length(self) -> int:
        """Number of slots in the cache."""
        ...

    def feed(
        self, tokens: Array, rows: int, hidden: bool = False, branches: Branches | None = None
    ) -> tuple[Array, Array | None]:
        """Append tokens[N] in slots length .. length + N - 1: as a chain with causal attention, or as `branches`.

        Returns logits[rows, V] for the last `rows` tokens and, with `hidden`, their final hidden states [rows, H],
        after the last norm. With rows = 0 the logits are empty.
        """
        ...

    def truncate(self, length: int, slots: Sequence[int] = ()) -> None:
        """Keep the first `length` slots, followed by `slots` in this order; drop all others."""
        ...

    def slots(self) -> object:
        """The contents of the cache as a hashable value: with equal contents, decoding continues identically."""
        ...


@dataclass(slots=True, eq=False)  # created at every step; a frozen one takes three times as long
class Feed:
    """The arguments of one call to `Session.feed`, together with the session.

    `given` are the tokens[N]; or what makes them, where the host knows their `ids`: recordings take these instead.
    """

    session: Session
    given: Array | Callable[[], Array]
    rows: int
    hidden: bool = False
    branches: Branches | None = None
    ids: Sequence[int] | None = None

    @property
    def tokens(self) -> Array:
        if callable(self.given):
            self.given = self.given()
        return self.given

    @property
    def num_tokens(self) -> int:
        return self.tokens.shape[0] if self.ids is None else len(self.ids)


CHUNK = 256  # tokens of a prefill per forward


def in_pieces(
    feed: Callable[[Array, int, bool], tuple[Array, Array | None]], parts: Sequence[Array], rows: int, hidden: bool
) -> tuple[Array, Array | None]:
    """`Session.feed` of a long chain, part by part, which keeps the activations small."""
    left, result = sum(part.shape[0] for part in parts), []
    for part in parts:
        left -= part.shape[0]
        wanted = min(max(rows - left, 0), part.shape[0])
        answer = feed(part, wanted, hidden)
        if wanted or not left:
            result.append(answer)
    if len(result) == 1:
        return result[0]
    concat = array_namespace(result[0][0]).concat
    return concat([logits for logits, _ in result]), concat([states for _, states in result]) if hidden else None


def one_by_one(feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
    """Feed each session separately: `Model.feed` of a model that cannot batch them."""
    return [feed.session.feed(feed.tokens, feed.rows, feed.hidden, feed.branches) for feed in feeds]


class Model(Protocol):
    """A causal language model."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context(self) -> int:
        """The maximum number of positions in a sequence."""
        ...

    def sessions(self, count: int, capacity: int = 0) -> Sequence[Session]:
        """Return `count` empty caches that can be fed together, with room for `capacity` slots each."""
        ...

    def session(self) -> Session:
        """Return one empty cache."""
        ...

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        """Feed sessions of one `sessions` call, in one forward if the model can; one `Session.feed` result each."""
        ...

    def ids(self, tokens: Sequence[int]) -> Array:
        """Copy host token ids to an integer array on the model's device."""
        ...

    def check_trees(self) -> object:
        """Raise ModelError if its sessions do not support `branches`."""
        ...

    def facts(self) -> dict[str, Any]:
        """What was loaded and on which device it runs, as a JSON-serializable dict."""
        ...

    def wait(self) -> None:
        """Synchronize with the device; timing code calls this before it reads the clock."""
        ...


class Sharding(Protocol):
    """How sessions reach the other processes that hold a model's layers."""

    @property
    def size(self) -> int:
        """The number of processes."""
        ...

    @property
    def leads(self) -> bool:
        """True in the process that decodes, which makes all checks."""
        ...

    def session(self, own: Session, check_trees: Callable[[], object]) -> Session:
        """A session whose calls are made in every process; `check_trees` is the model's."""
        ...

    def fingerprint(self, module: Any) -> str:
        """`model_facts.fingerprint` of the whole weights."""
        ...


class OwnText(Session, Protocol):
    """A session of a draft that reads the text in tokens of its own (`translated.py`)."""

    def told(self, ids: Sequence[int]) -> None:
        """Be told all committed ids, before each round."""
        ...

    @property
    def room(self) -> int:
        """How many tokens still fit the draft's context."""
        ...


@runtime_checkable
class Writer(Protocol):
    """A session of a draft that writes text instead of scoring tokens."""

    def write(self, count: int, gamma: int) -> tuple[list[int], list[int]]:
        """At most `count` <= gamma of the target's tokens after the committed ones, and the positions of each forward
        that this took."""
        ...


def own_text(session: Session) -> OwnText | None:
    """The session as one with its own tokens, if it is one."""
    return cast(OwnText, session) if hasattr(session, "told") else None


@runtime_checkable
class StateKeeper(Protocol):
    """A session of a target whose model was told to keep hidden states (`HFModel.keep_states`)."""

    def states(self, start: int, stop: int) -> Array:
        """The kept states [N, T D] of the slots start .. stop - 1, those of all T layers side by side."""
        ...


@runtime_checkable
class StateReader(Protocol):
    """A session of a draft that reads the target's hidden states, which exist for committed tokens alone.

    What it computed for drafted tokens is not kept when they are committed: they are fed again, with their states.
    """

    def read(self, ids: Sequence[int], keeper: Session | None) -> None:
        """Be told all committed ids, before each round, and the target's session, which holds all but the last one;
        None if that is at another sequence."""
        ...


@runtime_checkable
class Following(Protocol):
    """A session in the slots of another one, the leader."""

    def follow(self, leader: Session) -> None:
        """Hold what the leader holds."""
        ...


@runtime_checkable
class Follower(Protocol):
    """Optional interface of a model whose layers compute keys and values as the target's first ones do."""

    @property
    def follows(self) -> bool:
        """True if it is such a model."""
        ...

    def sessions_beside(self, leaders: Sequence[Session]) -> Sequence[Session] | None:
        """Return an empty `Following` session for each of the target's; None if they cannot have the same slots."""
        ...


@runtime_checkable
class DraftsBlocks(Protocol):
    """Optional interface of a model that scores all tokens of a chain in one forward."""

    def draft_block(
        self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int, banned: Sequence[frozenset[int]] = ()
    ) -> Drafted:
        """Draft `length` <= gamma tokens after those of `feed`, which it feeds; the first is sampled with the key
        `position`. With `num_drafted`, only so many of them are meant. `banned` are the ids that may not be drafted,
        for each token; all sets that are not empty are the same."""
        ...


@runtime_checkable
class Drafts(Protocol):
    """Optional interface of a model that drafts a whole chain in one call, sampling included, for a single session."""

    def drafts(self, ask: Draft, rng: Rng) -> bool:
        """True if the model supports this request; otherwise the engine drafts the chain step by step."""
        ...

    def draft(
        self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int, stopping: Stopping | None = None
    ) -> Drafted:
        """Draft `length` <= gamma tokens after those of `feed`; the first is sampled with the key `position`.

        Feeds the tokens of `feed` and all drafted tokens but the last; with `feed_last_token`, the last one too. With
        `stopping`, the chain ends where that says, or at `length`.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ChainStart:
    """The arguments of `Drafts.draft` that differ between chains that are drafted together."""

    length: int
    rng: Rng
    position: int
    stopping: Stopping | None = None


@runtime_checkable
class DraftsTogether(Protocol):
    """Optional interface of a model that drafts the chains of several sessions in one call."""

    def drafts_together(self, ask: Draft, sessions: Sequence[Session], rngs: Sequence[Rng]) -> bool: ...

    def draft_together(self, feeds: Sequence[Feed], ask: Draft, chains: Sequence[ChainStart]) -> list[Drafted]:
        """`Drafts.draft` of each feed, all of whose chains have at most `ask.gamma` tokens."""
        ...
