"""The judge at inference: arrays read from safetensors, and the code that turns features into probabilities.

This is array code that runs in the namespace of the features. Calibration, the toy without torch, decoding with a model
on a GPU and `mlflow models serve` therefore run the same lines. It does not train: see training.py.

    p(important) = sigmoid(W2 relu(W1 x + b1) + b2)  (kind mlp)     or  sigmoid(w x + b)  (kind logistic),
    x = (features - mean) / scale
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

Array = Any
KINDS = ("mlp", "logistic")
LAYERS = {"mlp": 2, "logistic": 1}
_LARGEST = 80.0  # largest exponent: exp of a few more overflows float32


@dataclass(slots=True)
class Network:
    """mean[F], scale[F], then weight_i[out, in] and bias_i[out] of each layer, all float32; `kind` gives the number."""

    kind: str
    arrays: Mapping[str, np.ndarray]
    _placed: dict[tuple[str, str], dict[str, Array]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of judge '{self.kind}'. Known: {', '.join(KINDS)}.")
        names = ["mean", "scale"]
        for i in range(1, LAYERS[self.kind] + 1):
            names += [f"weight_{i}", f"bias_{i}"]
        if sorted(self.arrays) != sorted(names):
            raise ValueError(f"a judge of kind {self.kind} needs {', '.join(names)}; got {', '.join(self.arrays)}.")
        self._check_arrays()

    def _check_arrays(self) -> None:
        """Raise ValueError for shapes that do not match, and for values that are not finite."""
        sizes = [self.arrays["mean"].size]
        shapes: dict[str, tuple[int, ...]] = {"mean": (sizes[0],), "scale": (sizes[0],)}
        for i in range(1, LAYERS[self.kind] + 1):
            sizes.append(1 if i == LAYERS[self.kind] else self.arrays[f"bias_{i}"].size)
            shapes |= {f"weight_{i}": (sizes[i], sizes[i - 1]), f"bias_{i}": (sizes[i],)}
        for name, shape in shapes.items():
            result = self.arrays[name]
            if result.shape != shape or result.dtype != np.float32:
                raise ValueError(f"{name} is {result.dtype}{list(result.shape)}; it must be float32{list(shape)}.")
            if not np.isfinite(result).all() or (name == "scale" and not (result > 0).all()):
                raise ValueError(f"{name} holds values that are not {'above 0' if name == 'scale' else 'finite'}.")

    @property
    def num_features(self) -> int:
        return int(self.arrays["mean"].shape[0])

    def __call__(self, features: Array) -> Array:
        """Return probabilities[N] that the mismatch of each row of features[N, F] is important."""
        xp = array_namespace(features)
        where = self._on(features)
        x = (xp.astype(features, xp.float32) - where["mean"]) / where["scale"]
        for i in range(1, LAYERS[self.kind]):
            x = xp.clip(x @ where[f"weight_{i}"].T + where[f"bias_{i}"], 0, None)
        last = LAYERS[self.kind]
        logits = (x @ where[f"weight_{last}"].T + where[f"bias_{last}"])[:, 0]
        return 1 / (1 + xp.exp(xp.clip(-logits, None, _LARGEST)))

    def _on(self, like: Array) -> dict[str, Array]:
        """Return the arrays in the namespace and on the device of `like`; they are moved once."""
        xp = array_namespace(like)
        key = xp.__name__, str(device(like))
        if key not in self._placed:
            place = device(like)
            self._placed[key] = {name: xp.asarray(array, device=place) for name, array in self.arrays.items()}
        return self._placed[key]
