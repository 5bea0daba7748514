"""Passwords and tokens of addresses are shown nowhere: in no output, no file, no run."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from helpers.cli_runner import evaluate, invoke
from helpers.tracking_server import serving
from helpers.uploads import TOY, answering, upload
from specexp import addresses
from specexp.addresses import mask, without_credentials
from specexp.tracking import backend, client

SECRET = "s3cr%40t%2F"  # as one writes it in an address; a server gets s3cr@t/
MASKED = {
    "http://me:secret@host:5000/a": "http://host:5000/a",
    "http://me@host/": "http://host/",
    "http://me:p@ss@host/": "http://host/",
    "http://me:pa/ss@host/": "http://host/",
    "sent to https://me:secret@host, twice": "sent to https://host, twice",
    "postgresql://me:secret@db/mlflow": "postgresql://db/mlflow",
    "mysql+pymysql://me:secret@db:3306/mlflow?charset=utf8": "mysql+pymysql://db:3306/mlflow?charset=utf8",
    "postgresql://db/x?user=me&password=secret&sslmode=require": (
        "postgresql://db/x?user=me&password=***&sslmode=require"
    ),
    "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dsecret": "mssql+pyodbc:///?odbc_connect=***",
    "https://host/rows.jsonl?X-Amz-Signature=secret&v=1": "https://host/rows.jsonl?X-Amz-Signature=***&v=1",
    "https://host/rows?sv=1&sig=secret": "https://host/rows?sv=1&sig=***",
    "https://host/#access_token=secret": "https://host/#access_token=***",
    "https://host/?api_key=secret is wrong": "https://host/?api_key=*** is wrong",
    'connection "host=db user=me password=secret"': 'connection "host=db user=me password=***"',
    "header Authorization: Bearer abcdefgh.ijkl": "header Authorization: Bearer ***",
}  # fmt: skip
KEPT = [
    "http://127.0.0.1:5000/path@version", "sqlite:////home/me@work/mlflow.db", "models:/autojudge@champion",
    "max_new_tokens=5 is too many", "https://host/?page=2&token_count_is_no_secret", "a key=value", "me@example.org",
    "file:///tmp/a@b", "Basic lessons",
]  # fmt: skip


@pytest.mark.parametrize("text", MASKED)
def test_secrets_are_masked(text: str) -> None:
    assert mask(text) == MASKED[text]
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize("text", KEPT)
def test_what_holds_no_secret_stays(text: str) -> None:
    assert mask(text) == text


def test_mlflow_has_credentials_from_variables_not_from_the_address() -> None:
    known = {addresses.TRACKING: f"https://me:{SECRET}@host:5000/base", "MLFLOW_TRACKING_TOKEN": "t"}
    before = dict(known)
    inside = {
        addresses.TRACKING: "https://host:5000/base",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "s3cr@t/",
    }

    def fails() -> None:
        with without_credentials(known):
            assert known == inside
            raise ValueError("host")

    with pytest.raises(ValueError, match="host"):
        fails()
    assert known == before


@pytest.mark.parametrize(
    "address", ["", "sqlite:////a@b/mlflow.db", "postgresql://me:secret@db/x", "http://host", "http://[bad"]
)
def test_other_addresses_are_left_to_mlflow(address: str) -> None:
    known = {addresses.TRACKING: address}
    with without_credentials(known):
        assert known == {addresses.TRACKING: address}


def test_the_line_that_says_where_the_charts_are_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000/")
    run = mock.Mock(**{"info.experiment_id": "7"})
    with mock.patch.object(client.MlflowClient, "get_run", return_value=run):
        assert client.chart_address("r").startswith("http://host:5000/#/experiments/7/runs?")
    assert backend.address() == "http://host:5000/"


def said_nowhere(secrets: tuple[str, ...], said: str, folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for secret in secrets:
        assert secret not in said
        assert not [str(path) for path in files if secret.encode() in path.read_bytes()]


def test_a_server_that_fails_gets_the_password_and_nobody_else(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server answers 503: the note, the files and the way on are all there, and the request was authorized."""
    heard: list[str | None] = []
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(503, heard) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", f"//me:{SECRET}@"))
        result = evaluate(*TOY, "--output", "out")
        again = upload()
    assert (result.exit_code, again.exit_code) == (3, 3)
    assert set(heard) == {"Basic bWU6czNjckB0Lw=="}  # me:s3cr@t/
    captured = capfd.readouterr()
    said_nowhere(
        (SECRET, "s3cr@t", "bWU6czNjckB0Lw"), result.output + again.output + captured.out + captured.err, workplace
    )
    assert os.environ["MLFLOW_TRACKING_URI"].count(SECRET) == 1, "what the caller has set is as it was"


def test_an_address_of_data_is_shown_without_its_password(workplace: Path) -> None:
    (workplace / "mine.yaml").write_text("task: prompts\n")
    data = "./https://me:s3cr3t@127.0.0.1:9/mine.jsonl"  # which is no file either
    result = evaluate("--config", "mine.yaml", "--data", data, "--output", "out")
    assert result.exit_code == 2, result.output
    assert "127.0.0.1:9/mine.jsonl" in result.output
    assert "s3cr3t" not in result.output


@pytest.mark.slow
def test_a_whole_story_on_a_server_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What MLflow prints of its own is looked at, too, and all that the server was given."""
    from entrypoints.collect_labels import command as collect_labels

    monkeypatch.chdir(tmp_path)
    with serving(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address.replace("//", "//someone:s3cr3t-word@"))
        said = ""
        for command in (
            lambda: evaluate(*TOY, "--output", "out"),
            lambda: evaluate(*TOY, "--output", "out", "--resume"),
            upload,
            lambda: invoke(collect_labels, "--limit", "2", "--max-new-tokens", "120", "--output", "labels"),
        ):
            result = command()
            assert result.exit_code == 0, result.output
            said += result.output
        assert f"charts: {server.address}/#/experiments/0/" in said
    captured = capfd.readouterr()
    assert "View run" in said + captured.out, "MLflow says where its runs are, and must be looked at"
    said_nowhere(("s3cr3t-word", "someone:", "c29tZW9uZT"), said + captured.out + captured.err, tmp_path)
