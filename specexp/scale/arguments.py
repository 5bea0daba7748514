"""Arguments that the commands of this package share."""

from __future__ import annotations


def numbers(name: str, text: str, faults: list[str]) -> list[int]:
    """Return whole numbers that are separated by commas; adds to the faults if they are none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        faults.append(f"{name} is '{text}'; it must be whole numbers >= 1, separated by commas.")
        return []
    return [int(part) for part in parts]
