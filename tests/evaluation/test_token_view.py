"""tokens.json and tokens.html of an evaluation: which prompts, what must add up, and what a page may not do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from helpers.cli_runner import comparison_runs, evaluate, records, refused
from helpers.judges import judge_for
from helpers.origins import check_counts
from specexp import config
from specexp.decoding.rules import Warp
from specexp.errors import ConfigError
from specexp.evaluation import preparation
from specexp.evaluation.token_view import token_page
from specexp.evaluation.token_view.selection import ShownPrompts
from specexp.judge import features
from specexp.pair.token_text import PART, SPECIAL, TEXT, Piece, marked, named, plain, spelled
from specexp.pair.tokenization import ToyText
from specexp.storage.files import CHECKSUM
from specexp.tasks.example import Example

DATA = Path(__file__).resolve().parents[1] / "data"
TOY = ["--experiment", "toy_quick", "--limit", "5", "--output", "out"]
METHODS = "baseline,draft_only,speculative,lookup,autojudge,topk,specexec"


class Page(HTMLParser):
    """What a browser would find: the text of every cell, hints, links, and whatever reaches outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[list[str]] = []
        self.hints: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self.links += [str(values[name]) for name in ("href", "src", "srcset", "data", "action") if name in values]
        self.ids += [str(values["id"])] if "id" in values else []
        if tag not in ("meta", "br"):
            self._inside.append(str(values.get("class", "")))
        if values.get("class") == "text":
            self.cells.append([])
        if "title" in values:
            self.hints.append(str(values["title"]))
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if "text" in self._inside and self.cells[-1]:
            self.cells[-1][-1] += data


def data_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "tokens.json").read_text())
    return content


def page_of(folder: Path) -> Page:
    return Page((folder / "tokens.html").read_text())


def check(folder: Path) -> dict[str, Any]:
    """All that must hold of the data beside the records, whatever was run."""
    data = data_of(folder)
    by_key = {(r["prompt_id"], r["turn"], r["label"]): r for r in records(folder) if r["repeat"] == 0}
    methods = {method["label"]: method for method in data["methods"]}
    for prompt in data["prompts"]:
        assert [cell["label"] for cell in prompt["cells"]] == list(methods)
        for cell in prompt["cells"]:
            record, tokens = by_key[prompt["prompt_id"], prompt["turn"], cell["label"]], cell["tokens"]
            assert cell["difference"] is None
            assert tokens["id"] == record["token_ids"]
            assert tokens["position"] == list(range(len(tokens["id"])))
            counts = {origin: tokens["origin"].count(origin) for origin in set(tokens["origin"])}
            assert counts == cell["counts"]
            check_counts(counts, cell["cut"], record, methods[cell["label"]]["bonus"])
            assert max(tokens["round"]) == record["num_rounds"] == cell["num_rounds"]
            assert (cell["answer"], cell["correct"]) == (record["answer"], record["correct"])
            texts = [text for text, kind in zip(tokens["text"], tokens["kind"], strict=True) if kind == TEXT]
            assert "".join(texts).rstrip() == record["text"].rstrip()
            check_columns(tokens, data["models"], methods[cell["label"]])
    return data


def check_columns(tokens: Mapping[str, list[Any]], models: list[str], method: Mapping[str, Any]) -> None:
    for i, origin in enumerate(tokens["origin"]):
        row = {name: column[i] for name, column in tokens.items()}
        for name, role in (("p", "target"), ("q", "draft")):
            assert (row[name] is not None) == (role in models)
            assert row[name] is None or 0 <= row[name] <= 1
        assert (row["rejected_id"] is not None) == (origin == "corrected")
        assert (row["rank"] is not None) == (origin == "tree")
        scored = origin in ("accepted", "judged") and bool(method["threshold"])
        assert (row["score"] is not None) == scored
        if row["p"] is not None:
            assert row["first_p"] >= row["p"]
            assert (row["p_rank"] == 1) <= (row["first_id"] == row["id"] or row["first_p"] == row["p"])


@pytest.mark.at_most(slow=1)
@pytest.mark.slow
@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_every_count_of_the_records_is_found_again(workplace: Path, temperature: str) -> None:
    judge_for("toy_quick", features.mode("both")).save(workplace / "judge")
    (workplace / "no_bonus.yaml").write_text("bonus: false\nmin_draft_probability: 0.2\n")
    for name, more in (("out", []), ("bare", ["--config", "no_bonus.yaml"])):
        result = evaluate(*TOY[:-1], name, "--methods", METHODS, "--judge", "judge", "--temperature", temperature,
                          "--threshold", "0,0.7", "--top-k", "9", "--show", "5", *more)  # fmt: skip
        assert result.exit_code == 0, result.output
        data = check(workplace / name)
        assert len(data["prompts"]) == 5
        seen = {origin for prompt in data["prompts"] for cell in prompt["cells"] for origin in cell["counts"]}
        assert seen >= {"accepted", "judged", "tree", "corrected", "target", "draft", "bonus"}


@pytest.mark.slow
def test_the_embedded_pair_is_shown_and_logged_with_the_comparison(workplace: Path) -> None:
    result = evaluate("--limit", "2", "--methods", "baseline,speculative,topk,specexec", "--gamma", "4", "--show", "2",
                      "--output", "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    data, page = check(workplace / "out"), page_of(workplace / "out")
    assert len(data["prompts"]) == 2
    (run,) = comparison_runs()
    assert {"tokens.html", "tokens.json"} <= {f.path for f in MlflowClient().list_artifacts(run.info.run_id)}
    tokens = [cell["tokens"] for prompt in data["prompts"] for cell in prompt["cells"]]
    assert [len(cell) for cell in page.cells] == [len(columns["id"]) for columns in tokens]
    assert len(page.hints) == sum(len(columns["id"]) for columns in tokens)
    for cell, columns in zip(page.cells, tokens, strict=True):
        assert cell == [plain(t) if k == SPECIAL else t for t, k in zip(columns["text"], columns["kind"], strict=True)]
        assert columns["kind"][-1] == SPECIAL
        assert columns["text"][-1] == "<|eos|>"
    for prompt in data["prompts"]:
        assert prompt["text"] in page.text
        assert f"Right answer: {prompt['gold']}" in page.text
    assert {f"#{name}" for name in page.ids} == set(page.links), "a link leads nowhere"


@pytest.mark.slow
def test_turns_repeats_and_batches_show_the_first_repeat_of_every_turn(workplace: Path) -> None:
    result = evaluate("--task", "mtbench", "--data", str(DATA / "mtbench.jsonl"), "--limit", "5", "--max-new-tokens",
                      "12", "--gamma", "3", "--temperature", "0.8", "--repeats", "2", "--batch", "2", "--history",
                      "own", "--show", "mtbench-82,mtbench-81", "--output", "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    data = check(workplace / "out")
    shown = [(prompt["prompt_id"], prompt["turn"]) for prompt in data["prompts"]]
    assert shown == [("mtbench-82", 0), ("mtbench-82", 1), ("mtbench-81", 0), ("mtbench-81", 1)]
    text = page_of(workplace / "out").text
    assert "mtbench-82, turn 2" in text
    assert "after each method's own answers to earlier turns" in text
    assert "First of 2 repeats." in text
    assert "Recorded in batches of 2" in text


@pytest.mark.nightly
def test_which_prompts_are_shown_is_no_setting_and_may_change_afterwards(workplace: Path) -> None:
    assert evaluate(*TOY, "--show", "0").exit_code == 0
    folder = workplace / "out"
    assert not list(folder.glob("tokens.*"))
    before = (folder / "records.jsonl").read_bytes()
    (run,) = comparison_runs()
    for show, expected in (("toy-4", ["toy-4"]), ("2", ["toy-0", "toy-1"]), ("toy-3, toy-1,toy-3", ["toy-3", "toy-1"])):
        assert evaluate(*TOY, "--resume", "--show", show).exit_code == 0
        assert [prompt["prompt_id"] for prompt in data_of(folder)["prompts"]] == expected
        (again,) = comparison_runs()
        own = MlflowClient().download_artifacts(again.info.run_id, "tokens.html", str(workplace))
        assert Path(own).read_text() == (folder / "tokens.html").read_text()
        assert again.info.run_id == run.info.run_id
    made = (folder / "tokens.html").stat().st_mtime_ns
    assert evaluate(*TOY, "--resume", "--show", "toy-3,toy-1").exit_code == 0
    assert (folder / "tokens.html").stat().st_mtime_ns == made, "the same prompts were decoded again"
    assert (folder / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "show,message",
    [
        ("toy-x", "show names prompt 'toy-x', which is not among this run's 5 ('toy-0' to 'toy-4'), did you mean"),
        ("-1", "show is '-1'; it must be a number >= 0, or prompt ids separated by commas."),
        (" , ", "show is ',', which names no prompt"),
    ],
)
def test_prompts_that_are_not_there_are_refused_before_any_work(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, show: str, message: str
) -> None:
    from specexp.evaluation import preparation

    monkeypatch.setattr(preparation, "load_pair", lambda *arguments: pytest.fail("models were loaded"))
    refused(evaluate(*TOY, "--show", show), message, workplace)


def record(prompt: str, method: str, tokens: list[int], judged: int = 0, repeat: int = 0) -> dict[str, Any]:
    return {"prompt_id": prompt, "turn": 0, "method": method, "token_ids": tokens, "num_judged": judged,
            "repeat": repeat, "paired": True}  # fmt: skip


def test_telling_prompts_come_first_and_are_shown_in_the_tasks_order() -> None:
    examples = [Example(name, ("?",)) for name in ("a", "b", "c", "d", "e", "7")]
    made = [record(x.prompt_id, "baseline", [1, 2]) for x in examples]
    made += [record("a", "draft_only", [3]), record("b", "topk", [1, 2]), record("c", "topk", [1, 2], judged=1)]
    made += [record("d", "topk", [9], repeat=1), record("e", "topk", [1, 3])]
    assert ShownPrompts.parse("2").choose(examples, made) == [2, 4]
    assert ShownPrompts.parse("3").choose(examples, made) == [0, 2, 4]
    assert ShownPrompts.parse("").choose(examples, made) == [0, 2, 4]
    assert ShownPrompts.parse("99").choose(examples, made) == [0, 1, 2, 3, 4, 5]
    assert ShownPrompts.parse("e,a").choose(examples, made) == [4, 0]
    assert ShownPrompts.parse("7,").choose(examples, made) == [5]
    commas = [Example("x, y", ("?",)), Example("x", ("?",))]
    assert ShownPrompts.parse("x, y").choose(commas, []) == [0]
    with pytest.raises(ConfigError, match="names prompt 'f'"):
        ShownPrompts.parse("a,f").check(examples)


def test_a_departure_from_the_record_is_told(workplace: Path) -> None:
    assert evaluate(*TOY, "--methods", "baseline,speculative", "--gamma", "3", "--show", "1").exit_code == 0
    folder = workplace / "out"
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        del line[CHECKSUM]  # of what it was
        if line["prompt_id"] == "toy-1" and line["method"] == "speculative":
            line["token_ids"][7] += 1
        if line["prompt_id"] == "toy-2" and line["method"] == "speculative":
            line["num_drafted"] += 1
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert evaluate(*TOY, "--methods", "baseline,speculative", "--gamma", "3", "--show", "toy-1,toy-2",
                    "--resume").exit_code == 0  # fmt: skip
    first, second = (prompt["cells"][1] for prompt in data_of(folder)["prompts"])
    here = first["tokens"]["id"][7]
    assert first["difference"] == {
        "position": 7, "recorded": str(here + 1), "traced": str(here), "num_recorded": len(first["tokens"]["id"])
    }  # fmt: skip
    assert second["difference"] == {"position": None, "counts": ["num_drafted"]}
    text = page_of(folder).text
    assert f"differs from the record at position 7: “{here}” here, “{here + 1}” there" in text
    assert "but with other counts (num_drafted)" in text


ODD = "a 😀 漢字 مرحبا <script>alert(1)</script> &amp; \t\u202e\u0000 x  \n" + "W" * 300
ODD_ID = "odd <i>\"' 😀"


def test_a_page_shows_odd_text_as_text_and_reaches_nothing_outside(workplace: Path) -> None:
    (workplace / "mine.jsonl").write_text(json.dumps({"prompt": ODD, "id": ODD_ID, "answer": "<b>7</b>"}) + "\n")
    (workplace / "mine.yaml").write_text("task: prompts\ndata: mine.jsonl\nmax_new_tokens: 30\n")
    result = evaluate("--config", "mine.yaml", "--methods", "draft_only", "--temperature", "1.5", "--output", "out")
    assert result.exit_code == 0, result.output
    check(workplace / "out")
    page, raw = page_of(workplace / "out"), (workplace / "out" / "tokens.html").read_text()
    assert page.tags.count("script") == 1
    assert "<script>alert(1)</script> &amp;" in page.text
    assert ODD_ID in page.text
    assert "Right answer: <b>7</b>" in page.text
    assert "\u202e" not in raw
    assert "\u0000" not in raw
    assert "⟨U+202E⟩" in raw
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", raw)
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    assert "No target model was loaded: there is no p." in page.text


def test_a_page_ends_where_it_would_grow_too_long(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_page, "CELL_TOKENS", 5)
    monkeypatch.setattr(token_page, "PAGE_TOKENS", 12)
    assert evaluate(*TOY, "--methods", "baseline", "--show", "toy-0,toy-1,toy-3,toy-4").exit_code == 0
    data, page = data_of(workplace / "out"), page_of(workplace / "out")
    lengths = [len(prompt["cells"][0]["tokens"]["id"]) for prompt in data["prompts"]]
    assert len(lengths) == 4
    assert min(lengths) > 5, "nothing is cut here"
    assert [len(cell) for cell in page.cells] == [5, 5]
    assert f"{lengths[0] - 5} more tokens are in tokens.json" in page.text
    assert "tokens.json has the others: toy-3, toy-4." in page.text


@pytest.fixture(scope="module")
def text() -> Any:
    from transformers import AutoTokenizer

    from specexp.lm.hf.source import ZOO
    from specexp.pair.tokenization import TokenizerText

    return TokenizerText(AutoTokenizer.from_pretrained(ZOO / "target"), chat=False)


@pytest.mark.parametrize("written", ["Mia has 4.\n\n  x \t", "é 😀👩‍👧 漢字", "שלום مرحبا", "\ufffd a\ufffd", ""])
def test_tokens_spell_the_text_together_and_no_part_of_a_character_is_broken(text: Any, written: str) -> None:
    ids = text.encode([{"role": "user", "content": written}])[1:]
    pieces = spelled(text, ids)
    assert len(pieces) == len(ids)
    assert "".join(piece.text for piece in pieces if piece.kind == TEXT) == written
    if "\ufffd" not in written:
        assert not any("\ufffd" in piece.text for piece in pieces if piece.kind == TEXT)
    assert [piece.kind for piece in spelled(text, ids[-3:], ids[-1:])][-1:] == ([SPECIAL] if ids else [])


def test_a_character_cut_off_stands_as_what_it_is_decoded_to(text: Any) -> None:
    ids = text.encode([{"role": "user", "content": "ok 😀"}])[1:]
    eos = text.tokenizer.eos_token_id
    kinds = [piece.kind for piece in spelled(text, ids)]
    assert kinds[-4:] == [PART, PART, PART, TEXT], "the emoji is no four tokens"
    for end in ([], [eos]):
        pieces = spelled(text, [*ids[:-1], *end], [eos])
        assert "".join(piece.text for piece in pieces if piece.kind == TEXT) == text.decode(ids[:-1])
        assert pieces[len(ids) - 2].kind == TEXT
        assert [piece.kind for piece in pieces[len(ids) - 1 :]] == [SPECIAL] * len(end)
    assert spelled(text, [text.tokenizer.bos_token_id])[0] == Piece(SPECIAL, "<|bos|>")


def test_ids_read_as_numbers_on_the_toy_and_its_end_is_a_mark() -> None:
    assert [piece.text for piece in spelled(ToyText(24), [5, 17, 0], (0,))] == ["5", " 17", "0"]
    assert [piece.kind for piece in spelled(ToyText(24), [5, 17, 0], (0,))] == [TEXT, TEXT, SPECIAL]


def test_what_cannot_be_seen_is_marked_across_tokens() -> None:
    assert marked(["a ", " ", "\nb ", "c\t", " "]) == [
        [("a", ""), (" ", "·")], [(" ", "·")], [("\n", "↵"), ("b ", "")], [("c", ""), ("\t", "⇥")], [(" ", "·")]
    ]  # fmt: skip
    assert marked(["x\u202ey\r"]) == [[("x", ""), ("\u202e", "⟨U+202E⟩"), ("y", ""), ("\r", "⟨U+000D⟩")]]
    assert [named(sign) for sign in "\x00\ud800\u200d\u2028é😀\n"] == [
        "⟨U+0000⟩",
        "⟨U+D800⟩",
        "",
        "⟨U+2028⟩",
        "",
        "",
        "",
    ]
    assert plain("a\n\tb\x07") == "a↵⇥b⟨U+0007⟩"


def test_q_is_what_the_drafts_were_drawn_from(workplace: Path) -> None:
    """At each setting's draft_temperature: at 0, every draft was certain."""
    (workplace / "own.yaml").write_text("draft_temperature: [target, 0, 0.5]\ngamma: 3\n")
    flags = {"methods": "speculative", "temperature": "0.9", "limit": "2", "max_new_tokens": "24", "config": "own.yaml"}
    options = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
    result = evaluate("--experiment", "toy_quick", *options, "--output", "out")
    assert result.exit_code == 0, result.output
    data = check(workplace / "out")
    made = preparation.prepare(config.resolve("toy_quick", flags))
    own = {"speculative_k3": 0.9, "speculative_k3_dt0": 0.0, "speculative_k3_dt0.5": 0.5}
    draft = made.pair.models["draft"]
    rejected = 0
    for prompt, ids in zip(data["prompts"], made.prompts, strict=True):
        for cell in prompt["cells"]:
            tokens = cell["tokens"]
            logits, _ = draft.session().feed(draft.ids([*ids, *tokens["id"][:-1]]), len(tokens["id"]))
            q = Warp(own[cell["label"]])(logits)
            assert tokens["q"] == pytest.approx([q[i, token] for i, token in enumerate(tokens["id"])], abs=1e-5)
            for i, token in enumerate(tokens["rejected_id"]):
                if token is not None:
                    assert tokens["rejected_q"][i] == pytest.approx(q[i, token], abs=1e-5)
                    assert tokens["rejected_q"][i] == 1 or cell["label"] != "speculative_k3_dt0"
                    rejected += 1
    assert rejected > 3
    assert [method["draft_temperature"] for method in data["methods"]] == [None, 0, 0.5]
    assert "a draft's at its draft_temperature" in page_of(workplace / "out").text
