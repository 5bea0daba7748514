"""What is said of each run by name: its name in MLflow, and whether something else was running while it was timed."""

from __future__ import annotations


def run_name(label: str, repeat: int, repeats: int) -> str:
    return label if repeats == 1 else f"{label}_r{repeat}"


def is_disturbed(metrics: dict[str, float]) -> bool:
    """Whether a speed-up is above what its own calls would allow, beyond noise: the clock measured something else."""
    length = metrics.get("accept/mean_length", float("inf"))
    return metrics.get("speed/speedup", 0.0) > 1.05 * length or metrics.get("speed/realised", 0.0) > 1.2
