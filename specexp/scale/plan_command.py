"""Plan runs over many workers: replays how long prompts take over N workers, without decoding anything.

`python -m specexp.scale plan --lengths gsm8k_test.jsonl --seconds-per-token 0.03`, or `--records FOLDER` of an
evaluation.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from tqdm import tqdm

from specexp.command_line import guarded
from specexp.errors import ConfigError
from specexp.scale import planning
from specexp.scale.arguments import numbers
from specexp.scale.durations import of_answers, recorded
from specexp.scale.simulation import Cluster

WORKERS, PROMPTS = "1,8,64,256,1000", "1319,10000,100000,1000000,10000000"


@click.command("plan", help=__doc__)
@click.option("--records", default="", help="Take the seconds of each prompt from an evaluation's output folder.")
@click.option("--lengths", default="", help="Take the length of each answer from a JSON Lines file, such as GSM8K's.")
@click.option("--seconds-per-token", default=0.03, show_default=True, help="Set what a token takes, with lengths.")
@click.option("--prefill-seconds", default=0.1, show_default=True, help="Set what a prompt takes, with lengths.")
@click.option("--workers", default=WORKERS, show_default=True, help="Set numbers of workers, separated by commas.")
@click.option("--prompts", default=PROMPTS, show_default=True, help="Set numbers of prompts, separated by commas.")
@click.option("--load-seconds", default=60.0, show_default=True, help="Set how long a worker loads the pair.")
@click.option("--driver-seconds", default=0.001, show_default=True, help="Set what each result takes of the driver.")
@click.option("--deaths-per-hour", default=0.01, show_default=True, help="Set how often a worker dies.")
@click.option("--restart-seconds", default=30.0, show_default=True, help="Set how long until another one is started.")
@click.option("--slow-share", default=0.0, show_default=True, help="Set the share of workers that are slow.")
@click.option("--slow-factor", default=2.0, show_default=True, help="Set how much longer a slow worker takes.")
@click.option("--block", default=2, show_default=True, help="Set the most prompts that a worker holds.")
@click.option("--order", type=click.Choice(["longest", "arrival"]), default="longest", show_default=True,
              help="Hand out the longest prompt of the window first, or prompts as they come.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Set the seed of deaths and of draws of prompts.")
def command(
    records: str, lengths: str, seconds_per_token: float, prefill_seconds: float, workers: str, prompts: str,
    load_seconds: float, driver_seconds: float, deaths_per_hour: float, restart_seconds: float, slow_share: float,
    slow_factor: float, block: int, order: str, seed: int,
) -> None:  # fmt: skip
    def run() -> None:
        faults: list[str] = []
        positive = {"seconds-per-token": seconds_per_token, "slow-factor": slow_factor, "block": block}
        others = {
            "prefill-seconds": prefill_seconds, "load-seconds": load_seconds, "driver-seconds": driver_seconds,
            "deaths-per-hour": deaths_per_hour, "restart-seconds": restart_seconds, "slow-share": slow_share,
        }  # fmt: skip
        faults += [f"{name} is {value:g}; it must be above 0." for name, value in positive.items() if not value > 0]
        faults += [f"{name} is {value:g}; it must be 0 or more." for name, value in others.items() if not value >= 0]
        faults += [f"slow-share is {slow_share:g}; it must be at most 1."] if slow_share > 1 else []
        faults += ["records and lengths: give one of them, not both or none."] if bool(records) == bool(lengths) else []
        sizes = {name: numbers(name, text, faults) for name, text in (("workers", workers), ("prompts", prompts))}
        if faults:
            raise ConfigError(faults)
        durations = _durations(records, lengths, seconds_per_token, prefill_seconds)
        cluster = Cluster(
            1, load_seconds, driver_seconds, deaths_per_hour, restart_seconds, slow_share, slow_factor, block,
            order == "longest", seed,
        )  # fmt: skip
        pairs = [
            (number, replace(cluster, num_workers=size)) for number in sizes["prompts"] for size in sizes["workers"]
        ]
        bar = tqdm(pairs, desc="simulating", unit="run", dynamic_ncols=True, leave=False)
        for line in planning.table([planning.cells(planning.row(durations, *pair)) for pair in bar]):
            click.echo(line)

    guarded(run, "Run the same command again.", "nothing was written.")


def _durations(records: str, lengths: str, seconds_per_token: float, prefill_seconds: float) -> list[float]:
    if records:
        return recorded(Path(records))
    return of_answers(Path(lengths), seconds_per_token, prefill_seconds)
