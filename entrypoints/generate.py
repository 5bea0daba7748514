"""generate: decode one prompt with one method, and show its text as it arrives; makes no run."""

from __future__ import annotations

import json as as_json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from specexp import reading
from specexp.command_line import guarded, own_options, print_notes, settings_options
from specexp.config import single
from specexp.config.schema import help_texts, option_names
from specexp.errors import PromptError
from specexp.metrics.before_end import before_end
from specexp.pair import first_look

from .evaluate import CONFIG

if TYPE_CHECKING:
    from specexp.api import Output
    from specexp.decoding.protocol import Role
    from specexp.pair.tokenization import Text

SETTINGS = {**help_texts(option_names("generate"), one=True), "config": CONFIG}


def generate(prompt: str, experiment: str, method: str, json: bool, flags: Mapping[str, str]) -> None:
    """Resolve, load, decode and show. Raises SpecexpError."""
    asked = single.resolve(experiment, method, flags)
    prompt = single.checked_prompt(read(prompt))
    first_look.check(asked)
    # Import torch only after the settings are checked.
    from specexp.api import LoadedPair, encoded
    from specexp.methods import main_role, roles_of
    from specexp.pair.thinking import budget_of

    role, messages = main_role(asked.methods[0]), single.checked_messages(prompt)

    def check(text: Text, contexts: Mapping[Role, int]) -> None:
        """What must be right before weights are read."""
        budget_of(text, asked.thinking_budget)
        encoded(messages, text, text.longest(), contexts[role], role)

    pair = LoadedPair(asked, roles=roles_of(asked.methods[0]), check=check)
    pair.judge_of(asked.methods[0])
    print_notes(pair.notes)
    shown = StreamedText()
    try:
        out = pair.decode(prompt, asked, on_text=None if json else shown.add)
    except KeyboardInterrupt:
        shown.end()
        click.echo(f"interrupted after {len(shown.text)} characters.", err=True)
        sys.exit(130)
    shown.end()
    if not out.text:
        print_notes([f"the text is empty: the model ended it after {len(out.token_ids)} tokens without visible text."])
    summary = facts(out)
    if json:
        text = {"text": out.text, "token_ids": out.token_ids, "method": asked.methods[0].label}
        click.echo(as_json.dumps({**text, **summary}, ensure_ascii=False))
    else:
        click.echo(words(summary), err=True)


def read(prompt: str) -> str:
    """The prompt itself, or the text of standard input for `-`. Raises PromptError."""
    if prompt != "-":
        return prompt
    return reading.decode(sys.stdin.buffer.read(), "standard input", PromptError, "; give it as UTF-8.")


class StreamedText:
    """Writes text to standard output as it arrives."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, piece: str) -> None:
        self.text += piece
        click.echo(piece, nl=False)  # which flushes

    def end(self) -> None:
        """End the line on a terminal; a pipe gets only the text."""
        if self.text and not self.text.endswith("\n") and sys.stdout.isatty():
            click.echo()


def facts(out: Output) -> dict[str, Any]:
    """Counts and times; a rate is null if nothing was drafted, and target calls are 0 if there was no target."""
    counts = out.counts
    seconds, tokens = counts["seconds"], len(out.token_ids)
    accepted, drafted = before_end(counts)
    return {
        "num_tokens": tokens,
        "target_calls": counts["num_target_calls"],
        "tokens_per_call": out.tokens_per_call,
        "draft_calls": counts["num_draft_calls"],
        "num_drafted": drafted,
        "num_accepted": accepted,
        "accept_rate": accepted / drafted if drafted else None,
        "seconds": seconds,
        "prefill_seconds": counts["prefill_seconds"],
        "tokens_per_second": tokens / seconds if seconds else None,
        "finish_reason": out.finish_reason,
    }


def words(summary: Mapping[str, Any]) -> str:
    """The facts in one line."""
    parts = [f"{summary['num_tokens']} tokens"]
    if summary["target_calls"]:
        parts.append(f"{summary['target_calls']} target calls ({summary['tokens_per_call']:.2f} tokens a call)")
    if summary["accept_rate"] is not None:
        accepted = f"{summary['num_accepted']} of {summary['num_drafted']} drafted"
        parts.append(f"accepted {accepted} ({summary['accept_rate']:.0%})")
    if summary["tokens_per_second"] is not None:
        speed = f"{summary['seconds']:.2f} s after {summary['prefill_seconds']:.2f} s of prefill"
        parts.append(f"{speed} ({summary['tokens_per_second']:.0f} tokens/s, cold)")
    return ", ".join([*parts, f"finished by {summary['finish_reason']}"])


@click.command("generate", help=__doc__)
@click.argument("prompt")
@own_options("generate")
@settings_options("arith_quick", SETTINGS, output=False)
def command(prompt: str, experiment: str, method: str, json: bool, **flags: str) -> None:
    """PROMPT may be - for standard input."""
    guarded(lambda: generate(prompt, experiment, method, json, flags), "", "")


if __name__ == "__main__":
    command()
