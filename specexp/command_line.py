"""Shared parts of entry points: one clear line and exit code 2 for errors the user can fix, a clean end on SIGTERM.

Exit code 3 means that the work is done and on disk, but its runs are not uploaded yet; 70 is a bug in specexp.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specexp import bugs, reading, signals
from specexp.addresses import mask, without_credentials
from specexp.config.command_options import COMMAND_OPTIONS, REQUIRED
from specexp.config.schema import OPTIONS
from specexp.config.setting import Option
from specexp.errors import ConfigError, OutputError, SpecexpError
from specexp.lm.out_of_memory import is_exhausted, way_out
from specexp.storage import files
from specexp.storage.run_plan import Input

if TYPE_CHECKING:
    from specexp.config import Experiment
    from specexp.storage.run_folder import OutputFolder
    from specexp.tasks.example import Task
    from specexp.tracking.outbox import Outbox, Sent

# MLflow settings, used where the user has set none.
MLFLOW = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # bars for a few small files would break up our own bars
    # With its defaults MLflow keeps asking a dead server for minutes. With these it gives up after some ten seconds,
    # and after four minutes where a server accepts a request and never answers.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
# Turns that a waiting thread of libgomp spins before it sleeps. With its default, 300,000, batches on a virtual machine
# ran at 0.6 of their speed for seconds at a time.
SPIN = "8000"
JOINED = "specexp.joined"  # of click's context: this process is the first of those that torchrun started
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")


class Boolean(click.ParamType[bool]):
    """true / false as text, since MLflow passes text; a bare `--resume` works too."""

    name = "true|false"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in TRUE:
            return True
        if str(value).lower() in FALSE:
            return False
        return self.fail(f"{value!r} is neither true nor false.", param, ctx)


def own_options(command: str) -> Callable[[Any], Any]:
    """The options that this command alone takes."""

    def decorate(function: Any) -> Any:
        for name, option in reversed(COMMAND_OPTIONS[command].items()):
            function = _click_option(name, option)(function)
        return function

    return decorate


def _click_option(name: str, option: Option) -> Callable[[Any], Any]:
    spelled = f"--{name.replace('_', '-')}"
    if option.default == "true":
        return click.option(f"{spelled}/--no{spelled[1:]}", name, default=True, help=option.help)
    if option.default == "false":
        return click.option(
            spelled, name, type=Boolean(), default=False, is_flag=False, flag_value=True, help=option.help
        )
    text, required = option.help, option.otherwise == REQUIRED
    if option.otherwise not in ("", "none", REQUIRED):
        text += f" Default: {option.otherwise.replace('`', '')}."
    spellings = dict.fromkeys((spelled, f"--{name}"))
    shown = bool(option.default)
    return click.option(
        *spellings, name, default=None if required else option.default, required=required, show_default=shown, help=text
    )


def settings_options(experiment: str, settings: Mapping[str, str], output: bool = True) -> Callable[[Any], Any]:
    """`experiment`, which is this one by default, and `settings` (name: help) as text, then `output` and `resume`."""

    def decorate(function: Any) -> Any:
        if output:
            function = _click_option("resume", OPTIONS["resume"])(function)
            function = click.option("--output", default="", help=OPTIONS["output"].help)(function)
        for name, text in reversed(list(settings.items())):
            spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
            function = click.option(*spellings, name, default="", help=text)(function)
        return click.option("--experiment", default=experiment, show_default=True, help=OPTIONS["experiment"].help)(
            function
        )

    return decorate


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on standard error, one per line."""
    for note in notes:
        click.echo(f"note: {note}", err=True)


def output_path(output: str, name: str, settings_hash: str = "", resume: bool = False) -> Path:
    """The folder that a command writes to: `output` if it is given, or else a folder below runs/.

    Without `settings_hash`, that folder is `name`, which identifies the settings: the same settings, the same folder.
    With it, each call gets a new folder, named by `name` and the current time; `resume` selects the newest of these
    folders that was begun with the settings of this hash. Raises OutputError if `output` is no path, or if there is
    no folder to resume.
    """
    runs = Path("runs")
    if output:
        return reading.path_of(output, "output", OutputError)
    if not settings_hash:
        return runs / name
    if not resume:
        return runs / time.strftime(f"{name}-%Y%m%d-%H%M%S")
    begun = []
    for path in runs.glob(f"{name}-*/config.json"):
        with suppress(OSError, ValueError, AttributeError):
            if json.loads(path.read_text(encoding="utf-8")).get("settings_hash") == settings_hash:
                begun.append(path.parent)
    if not begun:
        raise OutputError(f"no folder below 'runs' was begun by {name} with these settings; name one with output.")
    return max(begun, key=lambda path: path.name)


def outbox_of(folder: OutputFolder, kind: str, name: str, tags: Mapping[str, str]) -> Outbox:
    """The outbox for the main run of a folder. Asks the store, before anything is loaded. Raises StoreError."""
    from specexp.tracking import backend
    from specexp.tracking.outbox import Outbox

    return Outbox(folder.path, kind, name, tags, backend.unreachable_reason())


def tags_of(method: str, experiment: Experiment) -> dict[str, str]:
    """The tags of a run that one command makes from an experiment."""
    return {"method": method, "group": experiment.name, "pair": experiment.pair, "task": experiment.task}


def publish(outbox: Outbox, names: Sequence[str], metrics: Mapping[str, float], task: Task) -> Sent:
    """Send a finished report as one run, or only its files if the run was sent before. Raises Unsent."""
    paths = [outbox.path / name for name in names]
    main = outbox.main(metrics, paths, [Input.of(task.dataset(), "evaluation")])
    return outbox.add(paths) if outbox.is_sent else outbox.send(main)


def guarded(
    work: Callable[[], object],
    next_step: str = "Go on with --resume (-P resume=true).",
    kept: str = "what was recorded stays.",
) -> None:
    """Run `work`; on a SpecexpError print its lines and exit with its code, on an interruption exit with 130 or 143."""
    signal.signal(signal.SIGTERM, signals.terminate)
    for name, value in MLFLOW.items():
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:  # PyTorch reads it when it is loaded, which `work` does
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    try:
        _check_launcher()
        _check_arguments()
        with without_credentials():
            work()
    except SpecexpError as error:
        for fault in error.faults if isinstance(error, ConfigError) else [str(error)]:
            click.echo(f"error: {mask(' '.join(fault.splitlines()))}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # the reader of the output is gone; click then ends the command silently
        if isinstance(error, RuntimeError | MemoryError) and is_exhausted(error):
            click.echo(f"error: {way_out(error, 'limit, batch or max_new_tokens')}", err=True)
            sys.exit(2)
        if isinstance(error, OSError) and files.is_unwritable(error):
            click.echo(f"error: {mask(str(files.unwritable(error.filename or 'a file', error)))}", err=True)
            sys.exit(2)
        click.echo(f"error: {bugs.report(error)}", err=True)
        sys.exit(bugs.EXIT_CODE)
    except KeyboardInterrupt:
        click.echo(" ".join(filter(None, ("interrupted;", kept, next_step))).rstrip(";"), err=True)
        sys.exit(130)
    except signals.Terminated:
        click.echo(" ".join(filter(None, ("terminated;", kept, next_step))).rstrip(";"), err=True)
        sys.exit(143)


def _check_launcher() -> None:
    """Raise ConfigError if each of several processes of torchrun would do the whole command."""
    number, context = os.environ.get("WORLD_SIZE", "1"), click.get_current_context(silent=True)
    if "TORCHELASTIC_RUN_ID" in os.environ and number != "1" and not (context and context.meta.get(JOINED)):
        raise ConfigError(
            f"torchrun started {number} processes, each of which would do the whole command: they share a target only"
            " as 'torchrun ... -m specexp COMMAND' (with MLFLOW_RUN_ID for a run that exists). Start it so, or leave"
            " torchrun out, as with mlflow run: with tensor_parallel the command starts the processes itself."
        )


def file_of(name: str, what: str) -> Path:
    """A file to be written at the end, checked before any work. Raises OutputError if it cannot be written."""
    path = reading.path_of(name, what, OutputError)
    parent = path.absolute().parent
    if path.is_dir() or not parent.is_dir() or not os.access(path if path.exists() else parent, os.W_OK):
        raise OutputError(f"{what} '{name}' cannot be written; name a file in a folder that exists and can be written.")
    return path


def _check_arguments() -> None:
    """Refuse arguments that no file, store or tokenizer accepts, anywhere on the command line. Raises ConfigError."""
    context = click.get_current_context(silent=True)
    faults = []
    for name, value in (context.params if context else {}).items():
        what = "the prompt" if name == "prompt" else name
        for text in value if isinstance(value, tuple) else (value,):
            try:
                if isinstance(text, str):
                    reading.check_text(text, what, ConfigError, from_bytes=True)
            except ConfigError as error:
                faults += error.faults
    if faults:
        raise ConfigError(faults)
