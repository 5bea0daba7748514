"""upload: send an output folder's runs to the tracking store, after it did not answer; sends nothing twice."""

from __future__ import annotations

import click

from specexp import reading
from specexp.command_line import guarded, own_options
from specexp.errors import OutputError


def upload(output: str) -> None:
    """Send what `output` still has to send, each folder under its lock. Raises SpecexpError."""
    path = reading.path_of(output, "output", OutputError)
    if not path.is_dir():
        raise OutputError(f"output '{output}' is not a folder; name one that a command has written.")
    from specexp.storage.run_folder import locked
    from specexp.tracking import backend, outbox

    for folder in outbox.folders(path):
        with locked(folder):
            sent = outbox.upload(folder)
        if sent is None:
            click.echo(f"nothing to do: the store at {backend.address()} has all of '{folder}'.")
        else:
            runs = "1 run" if sent.num_runs == 1 else f"{sent.num_runs} runs"
            click.echo(f"sent: {runs} of '{folder}' to {backend.address()}")
            click.echo(sent.charts)


@click.command("upload", help=__doc__)
@own_options("upload")
def command(output: str) -> None:
    guarded(lambda: upload(output), "Run the same command again.")


if __name__ == "__main__":
    command()
