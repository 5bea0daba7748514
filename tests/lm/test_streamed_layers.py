"""Layers that come while others compute: the order of copies and waits, their number, and the same bits."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helpers.generation import prompts
from helpers.model_folders import build
from specexp import config
from specexp.decoding.baseline import Baseline
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.protocol import Role
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine
from specexp.errors import ConfigError
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import load_model
from specexp.lm.runtime import ModelConfig
from specexp.lm.streaming import transports
from specexp.lm.streaming.layer_stream import BUFFERS, LayerStream, ReadAhead, resident_layers
from specexp.pair import loading as pair_loading
from specexp.pair.loading import load_pair

Log = list[tuple[str, int]]


class FakeDevice:
    """Two streams that run nothing by themselves: what was launched has happened only where something waited for it.

    `content` is what a buffer has once all launched copies are done; a copy asserts that the layer before has computed.
    """

    def __init__(self) -> None:
        self.log: Log = []
        self.content: dict[int, int] = {}
        self.computing: dict[int, int] = {}  # by buffer: the layer that reads it and has not ended
        self.ended: dict[object, int] = {}  # events of computed layers
        self.copies: dict[object, tuple[int, int]] = {}

    def copy(self, buffer: int, layer: int, after: object) -> object:
        if buffer in self.content:
            assert after is not None, "a buffer is overwritten without waiting for its layer"
            assert self.ended[after] >= self.computing[buffer], "it waits for an earlier layer than the one it had"
        event = object()
        self.content[buffer], self.copies[event] = layer, (buffer, layer)
        self.log.append(("copy", layer))
        return event

    def wait_for(self, copied: object) -> None:
        self.log.append(("wait", self.copies[copied][1]))

    def computed(self) -> object:
        event = object()
        self.ended[event] = len(self.log)
        return event

    def compute(self, stream: LayerStream, layer: int) -> None:
        buffer = stream.begin(layer)
        assert ("wait", layer) == [each for each in self.log if each[0] == "wait"][-1], "it computes before its copy"
        assert self.content[buffer] == layer, "it computes with another layer's weights"
        self.log.append(("compute", layer))
        self.computing[buffer] = len(self.log)
        stream.end(layer)


def test_each_layer_waits_for_its_copy_and_the_next_one_comes_meanwhile() -> None:
    device = FakeDevice()
    layers = [0, 2, 3, 5]
    stream = LayerStream(layers, device)
    for _ in range(3):
        for layer in layers:
            device.compute(stream, layer)
    assert device.log[:9] == [
        ("copy", 0), ("wait", 0), ("copy", 2), ("compute", 0), ("wait", 2), ("copy", 3), ("compute", 2), ("wait", 3),
        ("copy", 5),
    ]  # fmt: skip
    assert stream.num_copies == 3 * len(layers) + 1, "one for each layer and call, and the first one of the next call"
    last = [each for each in device.log if each[0] != "wait"][-2:]
    assert last == [("copy", 0), ("compute", 5)], "the next call's first layer comes during the last one"


@pytest.mark.parametrize("num", [1, 2])
def test_layers_that_have_a_buffer_each_come_once(num: int) -> None:
    device = FakeDevice()
    stream = LayerStream(range(num), device)
    for _ in range(3):
        for layer in range(num):
            device.compute(stream, layer)
    assert stream.num_copies == num <= BUFFERS


@pytest.mark.parametrize("died", [0, 1, 2, 3])
def test_a_call_that_fails_in_a_layer_spoils_nothing(died: int) -> None:
    device = FakeDevice()
    stream = LayerStream(range(4), device)
    for layer in range(died):
        device.compute(stream, layer)
    buffer = stream.begin(died)
    device.computing[buffer] = len(device.log)  # launched, and its end was never noted
    for _ in range(2):
        for layer in range(4):
            device.compute(stream, layer)


@pytest.mark.parametrize(
    "memory,expected",
    [(0, []), (19, []), (29, []), (30, [0]), (50, [0, 3, 6]), (80, [0, 2, 4, 6]), (99, [0, 1, 3, 4, 6]),
     (100, list(range(10)))],
)  # fmt: skip
def test_layers_that_stay_leave_memory_for_the_buffers(memory: int, expected: list[int]) -> None:
    got = resident_layers([10] * 10, memory)
    assert len(got) == len(set(got))
    if memory < 100:
        assert 10 * len(got) + 10 * BUFFERS <= max(memory, 20)
    assert got == (expected if memory not in (80, 99) else got)
    assert resident_layers([10] * 10, 99)[-1] < 10


def test_of_different_sizes_the_largest_counts() -> None:
    assert resident_layers([10, 30, 10, 10, 10], 69) == []
    assert len(resident_layers([10, 30, 10, 10, 10], 70)) == 5, "all fit"
    assert resident_layers([30, 10, 10, 10, 30], 89) == []


def test_a_host_buffer_is_not_overwritten_before_it_was_copied_out() -> None:
    """The next layer is read while one is copied, and only after the last copy out of its buffer."""
    log: Log = []
    events: dict[int, int] = {}
    content: dict[int, int] = {}

    def read(layer: int, buffer: int) -> None:
        log.append(("read", layer))
        content[buffer] = layer

    def wait(event: int) -> None:
        log.append(("wait", event))

    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead([0, 1, 2], 2, read, pool.submit, wait)
        for number in range(7):
            layer = number % 3
            buffer = ahead.take(layer)
            assert content[buffer] == layer
            events[number] = buffer
            ahead.copied(layer, buffer, number)
        assert content[ahead.take(0 if number % 3 == 2 else (number + 1) % 3)] == (number + 1) % 3
    reads = [each for each in log if each[0] == "read"]
    assert [layer for _, layer in reads] == [n % 3 for n in range(8)], "each once a call, one ahead"
    for number in range(2, 8):
        assert log.index(("wait", number - 2)) == log.index(("read", number % 3), log.index(("wait", number - 2))) - 1


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model of seven layers."""
    path = tmp_path_factory.mktemp("deep")
    build("llama", num_hidden_layers=7).save_pretrained(path)
    return path


def bytes_of_a_layer(model: HFModel) -> int:
    return sum(p.nbytes for p in model.module.model.layers[0].parameters())


def in_memory(folder: Path) -> HFModel:
    """The model with its layers in memory of its own: weights of a mapped file are aligned as they are in it, and a
    product of one row has other bits for another alignment."""
    module = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for parameter in module.model.layers.parameters():
        parameter.data = parameter.data.clone()
    return HFModel(module, "plain", forward="transformers")


@pytest.mark.parametrize("kind", ["cpu", "disk"])
@pytest.mark.parametrize("resident", [0, 2])
def test_the_logits_are_those_of_the_model_in_memory_bit_for_bit(deep: Path, kind: str, resident: int) -> None:
    plain = in_memory(deep)
    size = bytes_of_a_layer(plain)
    memory = (resident + BUFFERS) * size * 1.05 / 2**30 if resident else 0.0
    model = load_model(ModelConfig(str(deep), offload=kind, offload_memory=memory))
    assert model.offload is not None
    streamed: Any = model.offload.streamed
    assert len(streamed.resident) == model.facts()["resident_layers"] == resident
    assert model.facts()["offloaded_bytes"] == (7 - resident) * size
    assert model.fingerprint() == plain.fingerprint()
    before, moved = streamed.stream.num_copies, streamed.transport.num_bytes
    sessions = plain.session(), model.session()
    ids = plain.ids([5, 9, 11, 40, 7])
    for call in range(3):
        expected, got = (each.feed(ids[: call + 1], rows=call + 1, hidden=True) for each in sessions)
        assert torch.equal(got[0], expected[0])
        assert got[1] is not None
        assert expected[1] is not None
        assert torch.equal(got[1], expected[1])
    copies = streamed.stream.num_copies - before
    assert copies == 3 * (7 - resident) + 1, "once a call, each layer that is not resident, and the first of the next"
    assert streamed.transport.num_bytes - moved >= copies * size
    assert model.offloaded, "between calls, the parameters have no values"


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_only_the_stream_moves_weights_during_a_call(deep: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's hooks find nothing to move: only what reads ahead from disk looks into their tables."""
    model = load_model(ModelConfig(str(deep), offload=kind, offload_memory=0))
    assert model.offload is not None
    streamed: Any = model.offload.streamed
    table = type(model.module.model.layers[3].mlp.up_proj._hf_hook.weights_map)
    get, names = table.__getitem__, []

    def noted(self: Any, name: str) -> Any:
        names.append(name)
        return get(self, name)

    before = streamed.stream.num_copies
    monkeypatch.setattr(table, "__getitem__", noted)
    model.session().feed(model.ids([5, 9, 11]), 1)
    copies, num_weights = streamed.stream.num_copies - before, len(streamed._slots[0])
    assert copies == 8
    # The next read may still be going on.
    least, most = (copies * num_weights, (copies + 1) * num_weights) if kind == "disk" else (0, 0)
    assert least <= len(names) <= most


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_decoding_is_that_of_the_model_in_memory(
    deep: Path, kind: str, pair: Callable[[str], dict[str, HFModel]]
) -> None:
    model = load_model(ModelConfig(str(deep), offload=kind, offload_memory=0))
    plain = in_memory(deep)
    draft = pair("llama")["draft"]
    pairs: list[dict[Role, HFModel]] = [{"target": each, "draft": draft} for each in (plain, model)]
    for decoder in (Baseline(Warp()), Chain(DraftModel(3), Lossless(), Warp(0.7)), SpecExec(8, 3, Warp())):
        expected, got = (
            Engine(each).generate(decoder, next(iter(prompts())), 12, rng_for(0.7, 0, "p")) for each in pairs
        )
        assert got.token_ids == expected.token_ids


def test_all_layers_stay_where_they_fit(deep: Path) -> None:
    model = load_model(ModelConfig(str(deep), offload="cpu", offload_memory=1))
    assert model.offload is not None
    streamed: Any = model.offload.streamed
    assert (len(streamed.resident), streamed.stream) == (7, None)
    plain = HFModel(load_model(ModelConfig(str(deep))).module, "plain", forward="transformers")
    ids = plain.ids([5, 9, 11])
    answers = [each.session().feed(ids, rows=3)[0] for each in (plain, model)]
    assert torch.allclose(*answers, atol=1e-5)


def test_host_copies_are_held_once(deep: Path) -> None:
    """accelerate's table has the bytes that are copied from: weights would take twice their memory otherwise."""
    model = load_model(ModelConfig(str(deep), offload="cpu", offload_memory=0))
    assert model.offload is not None
    streamed: Any = model.offload.streamed
    flat = streamed.transport._source.flat
    hook = model.module.model.layers[3].mlp.up_proj._hf_hook
    held = hook.weights_map["weight"]
    start = flat[3].data_ptr()
    assert start <= held.data_ptr() < start + flat[3].numel()


def test_a_folder_on_disk_goes_with_the_model(deep: Path) -> None:
    model = load_model(ModelConfig(str(deep), offload="disk", offload_memory=0))
    assert model.offload is not None
    place = Path(model.offload.folder)
    del model
    gc.collect()
    assert not place.exists()


def test_a_cpu_has_no_memory_to_spare_and_a_gpu_most_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 << 30, 80 << 30))
    assert transports.free_memory(torch.device("cpu")) == 0
    assert transports.free_memory(torch.device("cuda")) == 8 << 30


def test_the_draft_is_loaded_before_an_offloaded_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("target: {offload: cpu, offload_memory: 0.001}\n")
    order: list[str] = []
    load = pair_loading._load

    def noted(model: ModelConfig, *given: Any) -> Any:
        order.append(model.model)
        return load(model, *given)

    monkeypatch.setattr(pair_loading, "_load", noted)
    loaded = load_pair(config.resolve("arith_quick", {"config": str(file)}), {"target", "draft"})
    assert order == ["zoo:draft", "zoo:target"]
    assert list(loaded.models) == ["target", "draft"]
    assert loaded.models["target"].facts()["resident_layers"] == 0


def test_memory_without_offloading_is_refused_with_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("target: {offload_memory: 3}\n")
    with pytest.raises(ConfigError, match="offload_memory is 3, but offload is none: every layer stays on the device"):
        config.resolve("arith_quick", {"config": str(file)})
    file.write_text("target: {offload: cpu, offload_memory: -1}\n")
    with pytest.raises(ConfigError, match="it must be a number >= 0 and below 1000000, in GiB"):
        config.resolve("arith_quick", {"config": str(file)})


def test_folders_of_earlier_versions_keep_their_hash(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    hashes = []
    for text in ("target: {offload: cpu}\n", "target: {offload: cpu, offload_memory: 0}\n"):
        file.write_text(text)
        hashes.append(config.resolve("arith_quick", {"config": str(file)}).hash)
    assert hashes[0] != hashes[1]
    assert hashes[0] == "a29578919868"
