"""Pictures of the MLflow UI for README.md and docs: real pages of a real store, through headless Chromium.

    make demo screenshots

It takes the newest comparison run of the store in the current folder, serves the UI on a free port of this machine and
writes PNG files to .images. It needs Debian's chromium and chromium-driver (or CHROMIUM and CHROMEDRIVER naming them)
and the package selenium (`pip install -c requirements.lock -e '.[screenshots]'`). It changes no run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

WIDTH = 1500
TELLING = "mean_length$|alpha$|speed/speedup$|tokens_per_second$|quality/accuracy$"  # metrics of the charts' picture
SETTLE = 2.5  # seconds for figures to be drawn behind what was waited for
PATIENCE = 60
QUIET = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "hide-scrollbars",
    "disable-background-networking", "disable-component-update", "disable-sync",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """One picture: where, how high, and the text that stands there once it is loaded."""

    name: str
    address: str
    height: int
    shows: str
    prepare: Callable[[Any], None] = lambda driver: None


def pages(base: str, client: MlflowClient) -> Iterator[Page]:
    """What README.md and docs show; of the newest comparison run, and of the registered judge where there is one."""
    runs = client.search_runs(["0"], "tags.method = 'comparison' and attributes.status = 'FINISHED'", max_results=1)
    if not runs:
        sys.exit("error: the store here holds no comparison run; run `make demo` first.")
    run = runs[0]
    artifacts = f"{base}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts"
    charts = f"{base}/#/experiments/{run.info.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    yield Page("charts", charts, 1650, "accept", search(TELLING))
    yield Page("comparison", f"{artifacts}/figures/frontier.png", 1050, "frontier.png")
    yield Page("report", f"{artifacts}/report.html", 1300, "report.html")
    yield Page("tokens", f"{artifacts}/tokens.html", 1300, "tokens.html", scroll_to("p1"))
    for model in client.search_registered_models(max_results=1):
        yield Page("judge", f"{base}/#/models/{model.name}", 850, "champion")


def close_notes(driver: Any) -> None:
    """What the UI opens beside a page on a first visit."""
    for button in driver.find_elements(By.XPATH, "//button[@aria-label='Close']"):
        with contextlib.suppress(WebDriverException):  # gone by itself, or not to be seen
            button.click()


def hide_paths(driver: Any) -> None:
    """Where the artifacts stand on this machine is nobody's business."""
    for line in driver.find_elements(By.XPATH, "//*[starts-with(normalize-space(text()), 'Path:')]"):
        driver.execute_script("arguments[0].style.visibility = 'hidden'", line)


def search(pattern: str) -> Callable[[Any], None]:
    """Leave the charts whose metric matches."""

    def work(driver: Any) -> None:
        driver.find_element(By.CSS_SELECTOR, "input[placeholder='Search metric charts']").send_keys(pattern)
        time.sleep(SETTLE)

    return work


def scroll_to(name: str) -> Callable[[Any], None]:
    """Show an HTML artifact, which stands in a frame, from the element of this id on."""

    def work(driver: Any) -> None:
        driver.switch_to.frame(driver.find_element(By.TAG_NAME, "iframe"))
        driver.execute_script("document.getElementById(arguments[0]).scrollIntoView()", name)
        driver.switch_to.default_content()

    return work


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The MLflow UI of the store in this folder; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--port", str(port)]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        base = f"http://127.0.0.1:{port}"
        try:
            wait_for(base)
            yield base
        finally:
            server.terminate()


def wait_for(address: str) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                sys.exit(f"error: the MLflow UI does not answer at {address}.")
            time.sleep(0.5)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium with a profile of its own."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    if not chromium or not driver:
        sys.exit(
            "error: chromium and chromedriver are not found; install them, or name them by CHROMIUM, CHROMEDRIVER."
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory() as profile:
        for argument in (*QUIET, f"user-data-dir={profile}", f"window-size={WIDTH},1000"):
            options.add_argument(f"--{argument}")
        window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield window
        finally:
            window.quit()


def take(window: Any, page: Page, folder: Path) -> None:
    """One picture, once the page shows what it should."""
    window.set_window_size(WIDTH, page.height)
    window.get("about:blank")
    window.get(page.address)
    WebDriverWait(window, PATIENCE).until(lambda w: page.shows in w.find_element(By.TAG_NAME, "body").text)
    time.sleep(SETTLE)
    close_notes(window)
    hide_paths(window)
    page.prepare(window)
    time.sleep(SETTLE)
    path = folder / f"{page.name}.png"
    window.save_screenshot(str(path))
    print(path)


def main(names: Sequence[str]) -> None:
    folder = Path(".images")
    folder.mkdir(exist_ok=True)
    with served() as base, browser() as window:
        for page in pages(base, MlflowClient()):
            if not names or page.name in names:
                take(window, page, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
