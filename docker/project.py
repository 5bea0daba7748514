"""Writes docker/MLproject from the root's: the same entry points, in an image. `make docker-project` runs it.

An MLproject has one environment, so there are two files.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CONDA = "conda_env: conda.yaml\n"
# MLflow joins the command for a shell, which starts in this folder and fills in what stands behind a $.
DOCKER = """\
# Written by `make docker-project` from the root's MLproject: change that one.
docker_env:
  image: specexp-base
  volumes:
    - "$PWD/..:/mlflow/projects/code"
    - "$(python3 store.py)"
  # A local store is mounted at its own paths: the address outside is the address inside. SQLite then keeps its journal
  # beside the database, where every process finds it, and judges registered inside are found outside.
  environment: [["MLFLOW_TRACKING_URI", "$MLFLOW_TRACKING_URI"]]
"""


def project(root: str) -> str:
    """The text of docker/MLproject, from the text of the root's."""
    if root.count(CONDA) != 1:
        raise ValueError(f"MLproject has no line '{CONDA.strip()}' to put docker_env in the place of.")
    return root.replace(CONDA, DOCKER)


if __name__ == "__main__":
    (HERE / "MLproject").write_text(project((ROOT / "MLproject").read_text(encoding="utf-8")), encoding="utf-8")
