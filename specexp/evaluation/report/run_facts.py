"""The name of each run in MLflow, and the check for disturbed timings."""

from __future__ import annotations


def run_name(label: str, repeat: int, repeats: int) -> str:
    return label if repeats == 1 else f"{label}_r{repeat}"


def is_disturbed(metrics: dict[str, float]) -> bool:
    """True if a speed-up exceeds what its calls would allow, beyond noise: something else disturbed the clock."""
    length = metrics.get("accept/mean_length", float("inf"))
    return metrics.get("speed/speedup", 0.0) > 1.05 * length or metrics.get("speed/realised", 0.0) > 1.2
