"""What counts as an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from specexp.installed import is_installed


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("module", ["an_absent_package", "an_absent_package.part", "torch.an_absent_part"])
def test_what_is_not_there(module: str) -> None:
    assert not is_installed(module)


def test_modules_and_packages_are_and_are_not_imported(place: Path) -> None:
    (place / "a_module_of_one_file.py").write_text("raise AssertionError('imported')")
    (place / "a_package").mkdir()
    (place / "a_package/__init__.py").write_text("raise AssertionError('imported')")
    assert is_installed("a_module_of_one_file")
    assert is_installed("a_package")


def test_a_folder_of_data_is_none_but_what_is_in_a_folder_of_several_packages_is(place: Path) -> None:
    (place / "a_folder/part").mkdir(parents=True)
    assert not is_installed("a_folder")
    assert not is_installed("a_folder.part")
    (place / "a_folder/part/__init__.py").touch()
    assert is_installed("a_folder.part")
