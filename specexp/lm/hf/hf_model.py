"""Implements `Model` for Hugging Face causal language models: any folder or hub id that an auto class loads.

The families in `lm/blocks/families.py` run on the native forward (`native_forward.py`), all others on transformers'
forward: each session then has a full-length `DynamicCache`, which `truncate` crops; sliding-window layers keep all
their keys and mask them. If rotary angles depend on the length, `rope.py` does what generate() does. States that
cannot be truncated (recurrent and convolutional ones) go back to a copy (`recurrent_state.py`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from specexp.decoding.draft_length import Stopping
from specexp.decoding.protocol import Draft, Drafted
from specexp.decoding.rng import HashRng, Rng
from specexp.decoding.rules import Warp
from specexp.errors import ModelError
from specexp.lm.blocks.description import refusal
from specexp.lm.blocks.long_factors import boundary_of, turned
from specexp.lm.configs.refusals import NO_CACHE, RECURRENT
from specexp.lm.hf import forward_check, generation_config, model_config
from specexp.lm.hf.hf_session import HFSession
from specexp.lm.hf.model_facts import facts, fingerprint, notes
from specexp.lm.hf.offload import Offload
from specexp.lm.hf.own_layers import OwnLayers, sessions_beside, stack_path
from specexp.lm.hf.recurrent_state import Continuation, HFState
from specexp.lm.hf.rope import LongRopeSession, TurnedSession
from specexp.lm.hf.uncached_session import UncachedSession
from specexp.lm.kept_states import KeepingSession, StateHooks
from specexp.lm.kernels.table import Kernels
from specexp.lm.model import Feed, Session, Sharding, one_by_one
from specexp.lm.native.batch_graphs import RecordsTogether, recorded_pool
from specexp.lm.native.cuda_graphs import GraphSession
from specexp.lm.native.draft_loop import draft_chain
from specexp.lm.native.graph_capture import Capture, CudaGraphs
from specexp.lm.native.graph_pools import GraphPools
from specexp.lm.native.kv_cache import NativeSession, Pool, together
from specexp.lm.native.native_forward import NativeForward
from specexp.lm.replay import ReplaySession
from specexp.lm.transfer import integers

Array = torch.Tensor


@dataclass(slots=True)
class HFModel(RecordsTogether):
    """A loaded module and the properties that decoding needs."""

    module: Any
    name: str
    num_valid_ids: int | None = None  # number of ids that the tokenizer knows; higher ids are padding
    offload: Offload | None = None
    forward: str = "auto"  # "auto": the native forward if it supports the model; or "transformers"
    graphs: str | Capture = "auto"  # "auto": on CUDA with the native forward; "off"; or a `Capture`
    kernels: Kernels | None = None  # of the native forward; None: those that the device and the shapes allow
    suppressed: Sequence[int] = ()  # ids that are never emitted
    invariant: bool = False  # the native forward's results do not depend on what is fed with a token
    own: OwnLayers | None = None  # where these are some layers of another model
    sharding: Sharding | None = None  # where several processes hold its layers
    keeps_rows: bool = field(init=False)  # True if the module's forward takes `logits_to_keep`
    cache_argument: str = field(init=False)  # under which the module's forward takes its cache
    takes_positions: bool = field(init=False)  # True if it takes `position_ids`
    cache_kind: str = field(init=False)  # of `model_config.cache_kind`
    _continuation: Continuation | None = field(init=False, default=None)
    _hooks: StateHooks | None = field(init=False, default=None)  # of layers whose states sessions keep
    native: NativeForward | None = field(init=False, default=None)
    why_not_native: str | None = field(init=False)
    _native_fault: str | None = field(init=False, default=None)  # what the check of the native forward found
    graph_pools: GraphPools | None = field(init=False, default=None)  # None: forwards are not captured
    pools_beyond: GraphPools | None = field(init=False, default=None)  # of `native.beyond`
    _tree_check: forward_check.TreeCheck = field(init=False, default_factory=forward_check.TreeCheck)
    # Cached here because they are read at every step: looking them up in the module takes as long as a small layer.
    vocab_size: int = field(init=False)
    context: int = field(init=False)
    recomputed_at: int | None = field(init=False)  # the length beyond which the rotary angles change
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.graphs, str) and self.graphs not in ("auto", "off"):
            raise ValueError(f"graphs is {self.graphs!r}; it must be 'auto', 'off' or a `Capture`.")
        self.vocab_size = self.num_valid_ids or int(self._text_config.vocab_size)
        self.suppressed = [i for i in self.suppressed if i < self.vocab_size]
        model_config.check(self.module.config, self.name, type(self.module))
        self.context = model_config.context_of(self.module.config, self.name)
        boundary = boundary_of(self.module.config)
        self.recomputed_at = boundary.length if boundary is not None and boundary.recomputed else None
        self.device = torch.device(self.module.device)
        parameters = inspect.signature(self.module.forward).parameters
        self.keeps_rows, self.takes_positions = "logits_to_keep" in parameters, "position_ids" in parameters
        self.cache_kind = model_config.cache_kind(self.module.config, type(self.module))
        self.cache_argument = model_config.cache_argument(self.module.forward) or "past_key_values"
        self.why_not_native = refusal(self.module) if self.forward == "auto" else "it was not asked for"
        if self.own is not None and self.own.native is None:
            self.why_not_native = "the target does not run on it"
        if self.sharding is not None:
            self.why_not_native = f"{self.sharding.size} processes hold its layers"
        if self.why_not_native is None:
            self._use_native()

    def _use_native(self) -> None:
        """Decode by the native forward, if it gives the module's own logits."""
        # That of own layers has the target's joined weights, which the module's parameters are views of already.
        shared = self.own and self.own.native
        self.native = shared or NativeForward(self.module, self.suppressed, self.kernels, self.invariant)
        fault = forward_check.native_fault(self, lambda: self.sessions(2)[0])
        if fault is None and self.recomputed_at is not None:
            long = turned(self.module.model.rotary_emb, True, self.recomputed_at)
            fault = forward_check.native_fault(self, lambda: self._session_by_factors(True), long)
        self.why_not_native = self._native_fault = fault
        if self.why_not_native is not None:
            self.native = None
            return
        capture = self.graphs
        if capture == "auto" and self.device.type == "cuda":
            capture = CudaGraphs(self.device)
        if not isinstance(capture, str):
            self.graph_pools = GraphPools(self.native, capture, self.num_valid_ids)
            if self.native.beyond is not None:
                self.pools_beyond = GraphPools(self.native.beyond, capture, self.num_valid_ids)

    def without_graphs(self) -> HFModel:
        """Return this model, on the same weights, with forwards that are not captured."""
        other = copy.copy(self)
        other.graph_pools = other.pools_beyond = None
        return other

    @property
    def offloaded(self) -> bool:
        """True if some weights are copied to the device at each call, which only the module's own forward does."""
        return any(parameter.device.type == "meta" for parameter in self.module.parameters())

    @property
    def notes(self) -> list[str]:
        """Notes for the user: settings in the folder that are not applied, a forward that should have been faster."""
        return notes(self, self._native_fault)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All token ids at which this model stops."""
        return generation_config.stop_ids(self.module.generation_config, self.module.config)

    @property
    def continuation(self) -> Continuation:
        """How a recurrent state is continued; measured once."""
        if self._continuation is None:
            self._continuation = forward_check.continuation(self)
        return self._continuation

    def run_module(
        self, tokens: Array, positions: Array, cache: Any, rows: int, hidden: bool, **more: Any
    ) -> tuple[Array, Array | None]:
        """One forward of the module for tokens[N] after those in `cache`; answers as `Session.feed` does."""
        if self.keeps_rows:
            more["logits_to_keep"] = max(rows, 1)  # 0 would mean all of them
        if self.takes_positions:
            more["position_ids"] = positions[None]
        more[self.cache_argument] = cache
        out = self.module(input_ids=tokens[None], use_cache=True, output_hidden_states=hidden, **more)
        logits = out.logits[0, out.logits.shape[1] - rows :]
        return self.as_logits(logits), out.hidden_states[-1][0, tokens.shape[0] - rows :] if hidden else None

    def as_logits(self, rows: Array) -> Array:
        """The logits of the ids that are used, in float32, from those of the module [N, all ids]."""
        logits = rows[:, : self.num_valid_ids].float()
        if self.suppressed:
            logits[:, self.suppressed] = float("-inf")
        return logits

    def check_cache(self) -> None:
        """Raise ModelError if transformers' forward gives other logits with a cache than without one."""
        if self.native is None and self.cache_kind != NO_CACHE:
            forward_check.check_cache(self, self.name)

    def check_trees(self) -> None:
        """Raise ModelError if this model cannot mask a token tree, or gives its nodes other logits than their paths."""
        if self._tree_check.passed or (self.sharding is not None and not self.sharding.leads):
            return
        attention = self.module.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ModelError(
                f"model '{self.name}' uses {attention} attention, which takes no tree mask; use sdpa or eager."
            )
        model_config.check_trees(self.module.config, self.name, type(self.module))
        self._tree_check.run(self, self.name)

    @property
    def _text_config(self) -> Any:
        return self.module.config.get_text_config(decoder=True)

    def session(self) -> Session:
        return self.sessions(1)[0]

    @torch.inference_mode()
    def sessions(self, count: int, capacity: int = 0) -> Sequence[Session]:
        if self.recomputed_at is not None:
            make = partial(self._session_by_factors, capacity=capacity, recorded=count == 1)
            return [LongRopeSession(make, self.recomputed_at) for _ in range(count)]
        if self.cache_kind == NO_CACHE:
            return [UncachedSession(self) for _ in range(count)]
        if self.cache_kind == RECURRENT or self.native is None:
            made = [self._module_session() for _ in range(count)]
            return made if self._hooks is None else [KeepingSession(each, self._hooks) for each in made]
        if self.graph_pools is not None:
            return self.graph_pools.sessions(count, capacity)
        pool = Pool.empty(self.native, count, capacity, self.num_valid_ids)
        return [NativeSession(pool, row) for row in range(count)]

    def keep_states(self, layers: Sequence[int]) -> None:
        """From now on, have sessions keep the outputs of these layers for every slot (`StateKeeper`).

        The number of layers stands for the final states, after the last norm. Raises ModelError where no session can.
        """
        if self.recomputed_at is not None or self.cache_kind == NO_CACHE:
            why = "it has no cache" if self.recomputed_at is None else "its rotary angles depend on the length"
            raise ModelError(f"model '{self.name}' keeps no hidden states for a draft: {why}; name a draft model.")
        if self.native is not None:
            self.native.kept = tuple(layers)
        else:
            total = int(self._text_config.num_hidden_layers)
            stack = self.module.get_submodule(stack_path(self.module, total, self.name))
            final = self.module.get_decoder()
            self._hooks = StateHooks([final if layer == total else stack[layer] for layer in layers], self.device)

    @property
    def follows(self) -> bool:
        return self.own is not None and self.own.from_the_first and self.native is not None

    def sessions_beside(self, leaders: Sequence[Session]) -> Sequence[Session] | None:
        return sessions_beside(self, leaders)

    def _module_session(self) -> Session:
        """An empty cache of the module's own forward."""
        if self.cache_kind == RECURRENT:
            return ReplaySession(HFState(self, self.continuation), self.ids([]))
        own = HFSession(self)
        return own if self.sharding is None else self.sharding.session(own, self.check_trees)

    def _session_by_factors(self, long: bool, capacity: int = 0, recorded: bool = False) -> Session:
        """An empty cache whose keys are rotated by the short factors, or by the long ones."""
        if self.native is None or self.native.beyond is None:
            assert self.recomputed_at is not None
            return TurnedSession(HFSession(self), self.module.model.rotary_emb, long, self.recomputed_at)
        pools = self.pools_beyond if long else self.graph_pools
        if pools is not None and recorded:
            return pools.session(capacity)
        forward = self.native.beyond if long else self.native
        return NativeSession(Pool.empty(forward, 1, capacity, self.num_valid_ids), 0)

    def feed(self, feeds: Sequence[Feed]) -> list[tuple[Array, Array | None]]:
        alone = self.native is None or self.recomputed_at is not None
        if alone or (len(feeds) == 1 and recorded_pool(feeds[0].session) is None):
            return one_by_one(feeds)
        return together(feeds)

    def drafts(self, ask: Draft, rng: Rng) -> bool:
        if self.native is None or self.recomputed_at is not None:
            return False
        if ask.min_draft_probability and self.graph_pools is None:
            return False  # the engine reads each token's probability
        if ask.costs is not None and self.graph_pools is None and self.device.type != "cpu":
            return False  # the engine counts what its steps read from the device
        # A recording freezes the warp and the rng: only the standard classes, without other state, can be recorded.
        plain = type(ask.warp) is Warp and (ask.warp.greedy or isinstance(rng, HashRng))
        return self.graph_pools is None or plain

    def draft(
        self, feed: Feed, ask: Draft, length: int, rng: Rng, position: int, stopping: Stopping | None = None
    ) -> Drafted:
        if isinstance(feed.session, GraphSession):
            return feed.session.draft(feed, ask, length, rng, position, stopping)
        assert isinstance(feed.session, NativeSession)
        return draft_chain(feed.session, feed.tokens, ask, length, rng, position, stopping)

    def ids(self, tokens: Sequence[int]) -> Array:
        return integers(tokens, self.device)

    def fingerprint(self) -> str:
        """Hash of the weights in sixteen hex digits; see `model_facts.py`."""
        return fingerprint(self.module) if self.sharding is None else self.sharding.fingerprint(self.module)

    def facts(self) -> dict[str, Any]:
        return facts(self)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
