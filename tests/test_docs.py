"""The documents agree with the code and with each other, and the blocks that they mark as runnable run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from specexp.config import tables
from specexp.metrics import catalogue
from specexp.storage import run_folder
from specexp.storage.records import Record, TreeShape

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
SOURCES = sorted([*(ROOT / "specexp").rglob("*.py"), *(ROOT / "entrypoints").rglob("*.py")])
MOST_LINES, LINE_LENGTH = 150, 120
# Where the settings of an entry point are named that `evaluate` does not have.
DOCUMENTED_IN = {
    "main": "settings.md",
    "evaluate": "settings.md",
    "benchmark": "results.md",
    "advise": "advise.md",
    "certify": "certify.md",
    "collect_labels": "judges.md",
    "train_drafter": "drafters.md",
    "train_judge": "judges.md",
    "judge_report": "judges.md",
    "calibrate_rule": "judges.md",
    "log_decoder": "serving.md",
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the words after its fence, its text, and the line of the fence."""

    page: Path
    line: int
    info: tuple[str, ...]
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        else:
            text = "".join(f"{each}\n" for each in lines[start + 1 : number])
            yield Block(page, start + 1, tuple(lines[start].removeprefix("```").split()), text)
            start = None
    assert start is None, f"{page.name}, line {start}: a block without an end"


def prose_of(page: Path) -> list[str]:
    """The lines of a page, empty ones in place of fenced blocks."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        lines.append("" if inside or line.startswith("```") else line)
    return lines


def anchors_of(page: Path) -> set[str]:
    """The anchors that a code host gives the headings of a page."""
    counts: Counter[str] = Counter()
    anchors = set()
    for line in prose_of(page):
        if heading := re.match(r"#{1,6} (.+)", line):
            name = re.sub(r"[^\w\- ]", "", heading[1].strip().lower()).replace(" ", "-")
            anchors.add(f"{name}-{counts[name]}" if counts[name] else name)
            counts[name] += 1
    return anchors


def links_of(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", "\n".join(prose_of(page)))):
        if not re.match(r"[a-z]+:", target):
            yield target


def first_cells(page: Path) -> Iterator[str]:
    """The first cell of every row of every table."""
    for line in prose_of(page):
        if line.startswith("|"):
            yield line.split("|")[1]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in links_of(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert not broken


def test_the_readme_names_every_document() -> None:
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} <= {link.partition("#")[0] for link in links_of(README)}


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_no_longer_than_the_limit(page: Path) -> None:
    """A row of a table is one line, however long."""
    assert not [
        (number, line)
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > LINE_LENGTH and not line.startswith("|")
    ]


@pytest.mark.parametrize("entry_point", DOCUMENTED_IN)
def test_every_setting_of_an_entry_point_is_documented(entry_point: str) -> None:
    points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    page = DOCS / DOCUMENTED_IN[entry_point]
    settings = set(points[entry_point]["parameters"])
    if entry_point == "evaluate":
        named = {name for cell in first_cells(page) for name in quoted(cell)}
    else:
        settings -= set(points["evaluate"]["parameters"])
        named = {name.removeprefix("--") for name in quoted("\n".join(prose_of(page)))}
    assert not settings - named


def test_every_field_of_a_record_is_documented() -> None:
    named = {name for cell in first_cells(DOCS / "records.md") for name in quoted(cell)}
    assert not (Record.__annotations__.keys() | TreeShape.__annotations__.keys()) - named


def test_every_file_of_an_output_folder_is_documented() -> None:
    listed = re.findall(r"^(\S+\.\w+|\w+/)  +", run_folder.__doc__ or "", re.MULTILINE)
    assert "records.jsonl" in listed
    assert not set(listed) - {name for cell in first_cells(DOCS / "records.md") for name in quoted(cell)}


class Strings:
    """What the source says in strings: constants, and f-strings as patterns and by their ends."""

    def __init__(self, paths: list[Path]) -> None:
        self.constants: set[str] = set()
        self.patterns: set[str] = set()
        self.heads: set[str] = set()  # of f-strings that are a head and one value
        self.tails: set[str] = set()
        for path in paths:
            tree = ast.parse(path.read_text())
            inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                    self.constants.add(node.value)
                elif isinstance(node, ast.JoinedStr):
                    self._add([part.value if isinstance(part, ast.Constant) else None for part in node.values])

    def _add(self, parts: list[object]) -> None:
        texts = ["[^/]+" if part is None else re.escape(str(part)) for part in parts]
        if parts[-1] is not None:
            self.tails.add(str(parts[-1]))
        if len(parts) == 2 and str(parts[0]).endswith("/"):
            self.heads.add(str(parts[0]))
        elif parts[0] is not None and "/" in str(parts[0]):
            self.patterns.add("".join(texts))

    def has(self, key: str) -> bool:
        """Whether the source has this key in one piece, as an f-string, or as a head and a name."""
        head, _, name = key.partition("/")
        return (
            key in self.constants
            or any(re.fullmatch(pattern, key) for pattern in self.patterns)
            or (f"{head}/" in self.heads and name in self.constants)
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_of_settings_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run `make settings`"


def test_every_table_of_settings_has_one_place() -> None:
    placed = [name for page in PAGES for name in tables.names_in(page.read_text(encoding="utf-8"))]
    assert sorted(placed) == sorted(tables.TABLES)


def test_a_table_that_was_edited_by_hand_is_written_anew() -> None:
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert tables.filled(text.replace("Set the draft length", "Set the length of drafts")) == text


def test_the_table_of_metrics_is_the_catalogue() -> None:
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert catalogue.table() in text
    assert catalogue.filled(text) == text, "run `make settings`"
    assert catalogue.filled(text.replace(catalogue.table(), "| a row |")) == text


def test_every_metric_of_the_catalogue_exists() -> None:
    source, missing = Strings(SOURCES), []
    for metric in catalogue.METRICS:
        for name in metric.names:
            if name.endswith("/..."):
                there = any(text.startswith(name[:-3]) for text in source.constants | source.heads)
            else:
                there = source.has(re.sub(r"(?<=_)I$|(?<=cuda)N", "1", name))
            missing += [] if there else [name]
    assert len(catalogue.METRICS) > 40
    assert not missing


def test_every_metric_of_the_summary_is_in_the_catalogue() -> None:
    made = Strings(
        sorted(
            path for path in (ROOT / "specexp/metrics").glob("*.py") if path.stem not in ("catalogue", "load_metrics")
        )
    ).constants
    keys = {text for text in made if re.fullmatch(r"[a-z]+/[a-z_]+", text)} - {"batch/speedup_p"}  # which is taken out
    assert "accept/alpha" in keys
    assert not catalogue.unknown(keys)


def test_the_architecture_page_shows_the_loop_as_it_is() -> None:
    tree = ast.parse((ROOT / "specexp/decoding/chain.py").read_text())
    (chain,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Chain")
    (steps,) = (node for node in chain.body if isinstance(node, ast.FunctionDef) and node.name == "steps")
    (shown,) = (block for block in blocks_of(DOCS / "architecture.md") if block.text.startswith("def steps"))
    assert ast.dump(ast.parse(shown.text).body[0]) == ast.dump(steps)


def test_files_that_the_architecture_page_names_exist() -> None:
    told = quoted("\n".join(prose_of(DOCS / "architecture.md")))
    names = [name for name in told if re.fullmatch(r"\w+/[\w/.]+", name)]
    assert "specexp/decoding/chain.py" in names
    assert not [name for name in names if not (ROOT / name).exists()]


def runnable() -> list[object]:
    blocks: list[object] = []
    for page in PAGES:
        for block in blocks_of(page):
            if "runnable" in block.info:
                marks = [pytest.mark.slow] if "slow" in block.info else []
                blocks.append(pytest.param(block, id=f"{page.name}:{block.line}", marks=marks))
    return blocks


def test_marks_of_blocks_are_known() -> None:
    infos = {block.info[1:] for page in PAGES for block in blocks_of(page)}
    assert infos <= {(), ("components",), ("runnable",), ("runnable", "slow")}
    assert ("runnable",) in infos


@pytest.mark.parametrize("block", runnable())
def test_runnable_blocks_run(block: Block, workplace: Path) -> None:
    command = {
        "bash": ["bash", "-c", f"set -euo pipefail\n{block.text}"],
        "python": [sys.executable, "-c", block.text],
    }[block.info[0]]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
    out = subprocess.run(command, cwd=workplace, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert out.returncode == 0, out.stdout + out.stderr
