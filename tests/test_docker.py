"""The images and docker/MLproject: one list of entry points, one list of pins, no CUDA in the image for CPUs."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from mlflow.projects.docker import validate_docker_env
from mlflow.projects.utils import load_project
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
KINDS = ("cpu", "gpu")


def module(name: str) -> ModuleType:
    """A script of docker/, which is no package: its name is that of Docker's own, which MLflow imports."""
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


project, pins = module("project"), module("pins")


def dockerfile(kind: str) -> str:
    return (DOCKER / f"Dockerfile.{kind}").read_text()


def test_the_project_is_the_roots_in_an_image() -> None:
    root, written = (ROOT / "MLproject").read_text(), (DOCKER / "MLproject").read_text()
    assert written == project.in_docker(root), "run `make settings`"
    root_project, docker_project = yaml.safe_load(root), yaml.safe_load(written)
    assert docker_project.pop("docker_env")
    assert root_project.pop("conda_env")
    assert docker_project == root_project


def test_the_roots_project_has_the_commands_options() -> None:
    assert (ROOT / "MLproject").read_text() == project.project(project.commands()), "run `make settings`"


def test_a_root_project_without_its_environment_is_no_source() -> None:
    with pytest.raises(ValueError, match=r"no line 'conda_env: conda\.yaml'"):
        project.in_docker("name: specexp\n")


def test_mlflow_takes_the_project() -> None:
    loaded = load_project(str(DOCKER))
    validate_docker_env(loaded)
    assert loaded.name == "specexp"
    command = loaded.get_entry_point("evaluate").compute_command({"limit": "3"}, None)
    assert command.startswith("python -m entrypoints.evaluate --experiment arith_quick")
    makefile = (ROOT / "Makefile").read_text()
    assert f"--tag {loaded.docker_env['image']}:latest" in makefile, "make builds the image that it names"


def test_the_folder_does_not_hide_dockers_own_package() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import docker; docker.from_env"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def mounts(uri: str, folder: Path, run_id: str = "abc") -> subprocess.CompletedProcess[str]:
    """What docker/MLproject's volumes become in the shell that MLflow starts in docker/."""
    volumes = yaml.safe_load((DOCKER / "MLproject").read_text())["docker_env"]["volumes"]
    made = folder / "repository" / "docker"
    made.mkdir(parents=True)
    shutil.copy(DOCKER / "store.py", made)
    environment = {"PATH": os.environ["PATH"], "MLFLOW_TRACKING_URI": uri, "MLFLOW_RUN_ID": run_id}
    command = " ".join(f"-v {volume}" for volume in volumes)
    return subprocess.run(
        ["bash", "-c", f"echo {command}"], cwd=made, env=environment, capture_output=True, text=True, check=False
    )


def test_a_local_store_is_mounted_at_its_own_paths_with_a_folder_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    store.mkdir()
    monkeypatch.chdir(store)  # the first experiment's artifacts are put below the current folder
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    for name, location in (
        ("beside", str(store / "mlruns" / "1")),
        ("apart", elsewhere.as_uri()),
        ("away", "s3://x/y"),
    ):
        client.create_experiment(name, artifact_location=location)
    apart = client.get_experiment_by_name("apart")
    assert apart is not None
    run = client.create_run(apart.experiment_id)
    result = mounts(f"sqlite:///{store}/mlflow.db", tmp_path, run.info.run_id)
    code = f"{tmp_path}/repository/docker/..:/mlflow/projects/code"
    assert result.stdout.split() == ["-v", code, "-v", f"{store}:{store}", "-v", f"{elsewhere}:{elsewhere}"]
    assert (elsewhere / run.info.run_id / "artifacts").is_dir(), "Docker would make it as root"


def test_a_server_leaves_no_folder(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    result = mounts("http://127.0.0.1:5000", tmp_path)
    assert result.stdout.split()[-1] == f"{repository}:{repository}"
    assert [path.name for path in repository.iterdir()] == ["docker"]


def test_a_relative_store_is_refused_in_one_line(tmp_path: Path) -> None:
    result = mounts("sqlite:///mlflow.db", tmp_path)
    assert result.stderr.startswith("error: 'sqlite:///mlflow.db' is a relative address")
    assert len(result.stderr.splitlines()) == 1


def test_the_address_of_the_store_is_handed_on_as_it_is() -> None:
    environment = yaml.safe_load((DOCKER / "MLproject").read_text())["docker_env"]["environment"]
    assert environment == [["MLFLOW_TRACKING_URI", "$MLFLOW_TRACKING_URI"]]


def test_an_image_gets_the_projects_pins_and_one_for_cpus_names_that_build_of_torch() -> None:
    text, lock = (ROOT / "pyproject.toml").read_text(), (ROOT / "requirements.lock").read_text()
    names = [line.partition(">=")[0] for line in tomllib.loads(text)["project"]["dependencies"]]
    expected = [next(line for line in lock.splitlines() if line.startswith(f"{name}==")) for name in names]
    assert pins.requirements(text, lock, "cu130") == expected
    cpu = [f"{pin}+cpu" if pin.startswith("torch==") else pin for pin in expected]
    assert pins.requirements(text, lock, "cpu") == cpu
    assert pins.requirements('[project]\ndependencies = ["Py_YAML >=6"]', "# PyYAML==7\npy-yaml==6.1\n", "cpu") == [
        "py-yaml==6.1"
    ]
    with pytest.raises(ValueError, match=r"requirements\.lock has no tqdm\."):
        pins.requirements(text, lock.replace("tqdm", "tq"), "cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_is_made_as_the_images_make_it(kind: str) -> None:
    line = re.search(r"^RUN python3 (pins\.py list) \"\$\{TORCH_BUILD\}\" (.+) > ", dockerfile(kind), re.MULTILINE)
    build = re.search(r"^ARG TORCH_BUILD=(\w+)$", dockerfile(kind), re.MULTILINE)
    assert line is not None
    assert build is not None
    command = [sys.executable, str(DOCKER / "pins.py"), "list", build[1], *line[2].split()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("torch==2.13.0+cpu" if kind == "cpu" else "torch==2.13.0") in result.stdout.splitlines()


@pytest.mark.parametrize(
    "installed,build,cuda,expected",
    [
        ({"torch": "2.0+cpu"}, "cpu", None, []),
        ({"torch": "2.0+cpu", "pynvidia": "1", "cudatext": "1"}, "cpu", None, []),
        ({"torch": "2.0+cpu", "nvidia-cublas": "13"}, "cpu", None, ["nvidia-cublas is of CUDA, in an image for CPUs"]),
        ({"torch": "2.0+cpu", "triton": "3"}, "cpu", None, ["triton is of CUDA, in an image for CPUs"]),
        ({"torch": "2.0+cpu"}, "cpu", "13.0", ["torch is built for CUDA 13.0, not None"]),
        ({"torch": "2.0+cpu", "nvidia-cublas": "13", "triton": "3"}, "cu130", "13.0", []),
        ({"torch": "2.0+cpu"}, "cu130", "12.8", ["torch is built for CUDA 12.8, not 13.0"]),
        ({"torch": "2.0"}, "cpu", None, ["torch==2.0+cpu is pinned, 2.0 is installed"]),
        ({"torch": "2.1+cpu"}, "cpu", None, ["torch==2.0+cpu is pinned, 2.1+cpu is installed"]),
        ({}, "cpu", None, ["torch==2.0+cpu is pinned, nothing is installed"]),
    ],
)  # fmt: skip
def test_an_image_with_another_environment_is_not_built(
    installed: dict[str, str], build: str, cuda: str | None, expected: list[str]
) -> None:
    assert pins.faults(["torch==2.0+cpu"], installed, build, cuda) == expected


def test_names_of_packages_are_compared_as_pip_does() -> None:
    assert pins.faults(["PyYAML==6"], {"pyyaml": "6"}, "cpu", None) == []
    assert pins.faults(["torch==2.0"], {"torch": "2.0+cu126"}, "cu126", "12.6") == []
    assert pins.faults(["torch==2.0"], {"torch": "2.01"}, "cu126", "12.6") != []


def test_both_images_have_the_same_layers_behind_their_bases() -> None:
    """From the dependencies on they differ by a word in a label."""
    behind = [dockerfile(kind)[dockerfile(kind).index("# Dependencies, in layers") :] for kind in KINDS]
    cpu, gpu = (re.sub(r", on [\w ]+\"", "", text) for text in behind)
    assert cpu == gpu


@pytest.mark.parametrize("kind", KINDS)
def test_bases_are_pinned_by_digest_and_everything_is_built_on_them(kind: str) -> None:
    text = dockerfile(kind)
    assert re.search(r"^ARG BASE=docker\.io/[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_copied_is_in_the_build_context(kind: str) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", dockerfile(kind), re.MULTILINE)
    named = {word for line in copied for word in line.split()} - {"."}
    assert named <= kept
    assert {"specexp", "entrypoints"} <= kept
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_hadolint_finds_nothing(kind: str) -> None:
    tool = Path(sys.executable).with_name("hadolint")
    if not tool.exists():
        pytest.skip("hadolint is not installed: pip install '.[test]'")
    result = subprocess.run(
        [str(tool), str(DOCKER / f"Dockerfile.{kind}")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_make_names_the_user_and_the_commit() -> None:
    # `make test` is a make itself, and would be told of in what a make inside it prints.
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = ["make", "--no-print-directory", "-n", "docker-gpu", "DOCKER=podman"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    words = result.stdout.replace("\\\n", " ").split()
    assert words[:4] == ["podman", "build", "--file", "docker/Dockerfile.gpu"]
    assert f"USER_ID={os.getuid()}" in words
    arguments = {word.split("=")[0] for before, word in itertools.pairwise(words) if before == "--build-arg"}
    assert arguments <= set(re.findall(r"^ARG (\w+)", dockerfile("gpu"), re.MULTILINE))
