"""The packages, which pyproject.toml cannot find by itself: specexp's, and the commands in a folder beside them."""

from setuptools import find_packages, setup

COMMANDS = ["specexp.entrypoints", "specexp.entrypoints.judge_report", "specexp.entrypoints.serve"]
setup(packages=[*find_packages(include=["specexp", "specexp.*"]), *COMMANDS])
