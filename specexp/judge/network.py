"""The judge at inference: arrays read from safetensors, and the code that turns features into probabilities.

This is array code that runs in the namespace of the features. Calibration, the toy without torch, decoding with a model
on a GPU and `mlflow models serve` therefore run the same lines. It does not train: see training.py.

    p(important) = sigmoid(W2 relu(W1 x + b1) + b2)  (kind mlp)     or  sigmoid(w x + b)  (kind logistic),
    x = (features - mean) / scale
    p(important) = sigmoid(b + sum over trees of the value of the leaf that the features fall into)  (kind trees)

Shapes: N rows, F features, T trees, M nodes of the largest tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace, device

Array = Any
TREES = "trees"
LAYERS = {"mlp": 2, "logistic": 1}
KINDS = (*LAYERS, TREES)
# Of each node: the feature it tests, the largest value that goes left, its children (a leaf's are itself), its value.
NODES = {"feature": "int32", "bound": "float32", "left": "int32", "right": "int32", "value": "float32"}
_LARGEST = 80.0  # largest exponent: exp of a few more overflows float32


@dataclass(slots=True, eq=False)
class Network:
    """mean[F], scale[F], then weight_i[out, in] and bias_i[out] of each layer, all float32; `kind` gives the number.

    Of trees: `NODES`[T, M], where node 0 is the root, bias[1], and depth[1] and size[1] (F), which are int32.
    """

    kind: str
    arrays: Mapping[str, np.ndarray]
    _placed: dict[tuple[str, str], dict[str, Array]] = field(default_factory=dict, repr=False)
    recordable: ClassVar[bool] = True  # once it has run on a device, it only launches operations there

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of judge '{self.kind}'. Known: {', '.join(KINDS)}.")
        names = [*NODES, "bias", "depth", "size"] if self.kind == TREES else ["mean", "scale"]
        for i in range(1, LAYERS.get(self.kind, 0) + 1):
            names += [f"weight_{i}", f"bias_{i}"]
        if sorted(self.arrays) != sorted(names):
            raise ValueError(f"a judge of kind {self.kind} needs {', '.join(names)}; got {', '.join(self.arrays)}.")
        if self.kind == TREES:
            self._check_trees()
        else:
            self._check_arrays()

    def _check_trees(self) -> None:
        """Raise ValueError for shapes that do not match, and for nodes that lead outside."""
        shape = self.arrays["feature"].shape
        shapes = {**dict.fromkeys(NODES, shape), "bias": (1,), "depth": (1,), "size": (1,)}
        dtypes = {**NODES, "bias": "float32", "depth": "int32", "size": "int32"}
        for name, expected in shapes.items():
            result = self.arrays[name]
            if len(shape) != 2 or 0 in shape or result.shape != expected or result.dtype != dtypes[name]:
                raise ValueError(
                    f"{name} is {result.dtype}{list(result.shape)}; it must be {dtypes[name]}{[*expected]}."
                )
            most = {"left": shape[1], "right": shape[1], "feature": self.num_features}.get(name)
            if most is not None and not ((result >= 0) & (result < most)).all():
                raise ValueError(f"{name} holds numbers that are not in [0, {most}).")
        if not all(np.isfinite(self.arrays[name]).all() for name in ("bound", "value", "bias")):
            raise ValueError("bound, value or bias hold values that are not finite.")
        if not 0 <= self.arrays["depth"][0] <= shape[1]:
            raise ValueError(f"depth is {self.arrays['depth'][0]}; it must be from 0 to {shape[1]}.")

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
        return int(self.arrays["size"][0]) if self.kind == TREES else int(self.arrays["mean"].shape[0])

    def __call__(self, features: Array) -> Array:
        """Return probabilities[N] that the mismatch of each row of features[N, F] is important."""
        xp = array_namespace(features)
        where = self._on(features)
        if self.kind == TREES:
            return _sigmoid(self._leaves(xp.astype(features, xp.float32), where))
        x = (xp.astype(features, xp.float32) - where["mean"]) / where["scale"]
        for i in range(1, LAYERS[self.kind]):
            x = xp.clip(x @ where[f"weight_{i}"].T + where[f"bias_{i}"], 0, None)
        last = LAYERS[self.kind]
        return _sigmoid((x @ where[f"weight_{last}"].T + where[f"bias_{last}"])[:, 0])

    def _leaves(self, x: Array, where: Mapping[str, Array]) -> Array:
        """Return the log-odds[N] of x[N, F]: every row takes as many steps as the deepest tree has."""
        xp, (num_trees, width) = array_namespace(x), self.arrays["feature"].shape
        flat = {name: xp.reshape(where[name], (-1,)) for name in NODES}
        roots = xp.arange(num_trees, dtype=xp.int64, device=device(x)) * width
        starts = xp.broadcast_to(roots[None, :], (x.shape[0], num_trees))

        def of(name: str, node: Array) -> Array:
            return xp.reshape(xp.take(flat[name], xp.reshape(starts + node, (-1,)), axis=0), node.shape)

        node = xp.zeros_like(starts)
        for _ in range(int(self.arrays["depth"][0])):
            tested = xp.take_along_axis(x, xp.astype(of("feature", node), xp.int64), axis=-1)
            node = xp.astype(xp.where(tested <= of("bound", node), of("left", node), of("right", node)), xp.int64)
        return xp.sum(of("value", node), axis=-1) + where["bias"]

    def _on(self, like: Array) -> dict[str, Array]:
        """Return the arrays in the namespace and on the device of `like`; they are moved once."""
        xp = array_namespace(like)
        key = xp.__name__, str(device(like))
        if key not in self._placed:
            place = device(like)
            self._placed[key] = {name: xp.asarray(array, device=place) for name, array in self.arrays.items()}
        return self._placed[key]


def _sigmoid(logits: Array) -> Array:
    xp = array_namespace(logits)
    return 1 / (1 + xp.exp(xp.clip(-logits, None, _LARGEST)))
