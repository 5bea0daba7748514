"""What a decoder may ask of the engine, and what the engine answers.

A decoder is a generator. It yields `Score`, `Draft`, `Recall` and `GrowTree` to get logits, drafted tokens and trees,
and `Round` to commit tokens; the engine (`specexp.engine`) answers. A decoder never sees a KV cache, a device, a limit
or a clock.

Shapes: G drafted tokens, V vocabulary, H hidden size, R rows, M tokens of a round.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from specexp.decoding.draft_length import RelativeCosts
from specexp.decoding.rng import Rng
from specexp.decoding.rules import Warp

Array = Any  # an array of any namespace that array-api-compat knows
Role = Literal["target", "draft"]


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """Ask for the logits of `model` after the last committed token and after each of `tokens`[N].

    Slots number the tokens fed to this model since the last `Round`, from 0; -1 is the last committed token. Token i
    follows slot `parents[i]`, which may be an earlier token of the same ask; `parents=None` is a chain that follows the
    newest slot. The first ask of a round answers R = N + 1 rows (row 0 follows the last committed token), later ones
    R = N. `tokens=None` asks for row 0 alone. Host ids are moved to the model's device. With `top`, rows hold the
    W = min(top, V) best tokens only, and are read to the host.
    `row_metadata` are lists of host integers, all of one length, that will be needed on the device of the logits. With
    `tree`, its places are the tokens, padding included, and the answer's `row_metadata` is its table.

    With `trial`, the engine may have the device make the answer's round together with the forward (`Scored.round`).
    """

    model: Role
    tokens: Array | Sequence[int] | None = None
    parents: Sequence[int] | None = None
    top: int | None = None
    hidden: bool = False
    row_metadata: Sequence[Sequence[int]] = ()
    tree: GrownTree | None = None
    trial: Trial | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """`logits`[R, V]; or, when `top` was given, `logprob`[R, W] and `ids`[R, W], best first, at temperature 1.

    These two are lists on the host, read in one transfer, since the decoder chooses among the best tokens there.
    `hidden`[R, H], the last layer after its norm, when asked for. The first of `tokens` is in slot `first_slot`.
    `row_metadata` is an array with a row for each list of the ask's, on the device of the logits. `round` is what the
    ask's trial makes of this, with values on the host; None if it was not made yet.
    """

    logits: Array | None
    hidden: Array | None = None
    first_slot: int = 0
    logprob: Sequence[Sequence[float]] = ()
    ids: Sequence[Sequence[int]] = ()
    row_metadata: Array | None = None
    round: Round | None = None


class Decision(Protocol):
    """Decides what a round commits: a pure function of arrays, which never branches on a value.

    Two that are equal decide alike. If `recordable`, it launches operations on the device of the logits and nothing
    else, so that a recording of it decides as it does, also for an rng and a position that are arrays.
    """

    @property
    def recordable(self) -> bool: ...

    @property
    def takes_padding(self) -> bool:
        """True if it takes drafts with padding (`Drafted.num_drafted`), which the target scored like the rest."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the proposal's arrays that it reads, besides a chain's tokens."""
        ...

    def __call__(self, scored: Scored, proposed: Any, rng: Rng, position: Array | int) -> Round:
        """The round of what the target scored of `proposed`, a `Drafted`, a tree, or None. `position` is that of the
        round's first token."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A decision and what it depends on besides the target's scores."""

    decision: Decision
    proposed: Any
    rng: Rng
    position: int

    def __call__(self, scored: Scored) -> Round:
        """The round, unless the device has made it already."""
        return scored.round or self.decision(scored, self.proposed, self.rng, self.position)


@dataclass(frozen=True, slots=True)
class Needs:
    """What an acceptance rule needs: hidden rows that it reads (the target's, the draft's, and the draft's at its last
    token), drafts drawn with what no other round draws with, the draft's distributions at temperature 0, too, and
    `all_rows` of the target's logits, also those behind a token that it rejects."""

    target: bool = False
    draft: bool = False
    feed_last_token: bool = False
    by_round: bool = False
    draft_q: bool = False
    all_rows: bool = False


RequiredHidden = Needs  # its name in version 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """Ask for a chain of at most `gamma` tokens sampled from the draft under `warp`.

    The engine trims it so that the chain and `reserve` more tokens fit what is left to emit, and the draft's context.
    With `feed_last_token`, the last token is fed too, for its hidden row: one more forward, which the next round saves.

    With `min_draft_probability` it ends after the first token whose probability in q is below it; at temperature 0,
    where q is one-hot, the probability at temperature 1 counts. The token itself stays: dropping a token because of its
    value would leave tokens that are not drawn from q.

    With `costs` it ends after the token from which on no longer chain pays (`draft_length.py`), or has no token at all
    where drafting has been slower than plain decoding. This looks at tokens that stay, and at what earlier rounds
    showed of tokens before it.

    With `by_round`, its draws are those of `Rng.of_round`.

    With `keep_q`, q is answered at temperature 0, too: the draft's distributions at temperature 1.
    """

    gamma: int
    warp: Warp
    reserve: int = 1
    hidden: bool = False
    feed_last_token: bool = False
    min_draft_probability: float = 0.0
    by_round: bool = False
    costs: RelativeCosts | None = None
    keep_q: bool = False


@dataclass(frozen=True, slots=True)
class SuffixLimits:
    """How far a suffix that occurred before is continued: up to `factor` tokens for each one that matches, while the
    product of their shares among what followed is at least `min_probability`."""

    factor: float = 1.0
    min_probability: float = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Recall:
    """Ask for at most `gamma` tokens that follow, in `text`, what was committed last.

    `text=None` is the sequence itself, prompt and output: what followed an earlier occurrence of its last tokens, at
    most `max_ngram`; or, with `suffix`, what followed any of its suffixes most often. At least `min_match` tokens must
    occur again. Nothing is sampled: q is one-hot. Without an occurrence, the answer has no tokens. It is trimmed as
    `Draft` is, but the draft's context does not matter.
    """

    text: Sequence[int] | None
    gamma: int
    reserve: int = 1
    max_ngram: int = 0
    suffix: SuffixLimits | None = None
    min_match: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """tokens[G], each drawn from its row of q[G, V]; 0 <= G <= gamma. A draft model's q is None where it was asked for
    tokens of temperature 0: it is one-hot on the tokens. With `keep_q` it is then that of temperature 1 instead.

    hidden[G, H] are the rows q was read from, when asked for; with `feed_last_token`, hidden[G + 1, H] has that of the
    last token too. peaks[G] are the largest logits of these rows, for the engine alone; None where no model drafted.
    `source` is the name of the proposer, where several take turns. Of an ask with `costs`, probability[G] are those of
    the tokens under the draft, for the engine alone. Where `num_drafted`[1] is given, only so many tokens were drafted,
    and the rest of every array is padding, which the engine cuts off, except for a decision that takes it.

    The next draft of the request may overwrite all arrays: they are those of a recording.
    """

    tokens: Array
    q: Array | None
    hidden: Array | None = None
    peaks: Array | None = None
    source: str = ""
    probability: Array | None = None
    num_drafted: Array | None = None


@dataclass(frozen=True, slots=True)
class GrowTree:
    """Ask for a token tree below the last committed token, grown by the draft as `SpecExec` says.

    The answer is the tree where the draft grows it on its device and the target scores it there (`GrownTree`). Anywhere
    else it is an int, the depth to which the decoder grows the tree by asks of its own (`specexec.grow`).

    The engine trims the depth, from `max_depth` down to 0, so that a path and `reserve` more tokens fit what is left to
    emit, and so that the draft's context holds all but the deepest node, which only the target reads.
    """

    budget: int
    max_depth: int
    branches: int
    width: int
    threshold: float = 0.0
    min_log_prob: float = float("-inf")
    reserve: int = 1


TREE_COUNTS = (
    "num_nodes", "depth", "num_draft_calls", "max_active", "num_expanded", "num_candidates", "pruned_by_threshold",
    "pruned_by_log_prob", "pruned_by_budget",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class GrownTree:
    """A tree on the draft's device, in K places: its nodes, parents first, then padding, which no node has as parent.

    `table`[4, K + 1] has a row for tokens, for the parents' places, for the draft's slots (-1: not expanded), and for
    ranks; column 0 is the root and node i is in column i + 1, which is its row in the target's logits. The root's
    parent and all of padding is -1. `depths`[K] are counted from 1 below the root. sees[K, K] holds where a node has
    another one among its ancestors, itself included. `counts`[9] are `TREE_COUNTS`. `peak`[1] is finite unless the
    draft's logits are not. scores[K] are the log-probabilities of the nodes' paths. No path is longer than `depth`.
    """

    table: Array
    depths: Array
    sees: Array
    counts: Array
    scores: Array
    peak: Array
    depth: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """Commit the first `num_tokens` of `tokens`[M]. The answer is how many may still be emitted; 0 ends decoding.

    `kept[model]` says which slots hold the committed tokens, in their order: a count n (0-d array or int) for slots
    0 .. n - 1, or an array of slots, padded with -1. The engine drops all others. A model that is not named keeps none.
    `counts` are recorded: numbers or 0-d arrays, except `overlap`[G] and `judged`[G] with one value for each drafted
    position, and a tree's `path` and `ranks`, padded with -1. Those of a tree (`num_nodes`) are recorded round by
    round, and those of a chain with a `source` under that name, too. With `reads_all` the tokens depend on every row of
    the round's logits, also on those behind the last committed token.
    """

    tokens: Array
    num_tokens: Array | int
    kept: Mapping[Role, Array | int] = field(default_factory=dict)
    counts: Mapping[str, Array | int] = field(default_factory=dict)
    source: str = ""
    reads_all: bool = False


Ask = Score | Draft | Recall | GrowTree | Round
Answer = Scored | Drafted | GrownTree | int
# A decoder's generator. Each ask has its own type of answer, which the type of a generator cannot express.
Steps = Generator[Ask, Any, None]
