"""Places labels next to points so that none covers another label or a point: greedy and deterministic."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top
DIRECTIONS = 16
RINGS = (1.0, 1.7, 2.5, 3.4, 4.4, 5.5)  # distances to try, in label heights


def places(
    points: Sequence[Point], width: float, height: float, frame: Box, others: Sequence[Point] = ()
) -> list[Point]:
    """Return the centre of each point's label, in the points' units, inside `frame` and off these points and `others`.

    The nearest free place is taken; if none is free, the one that covers least.
    """
    known = list(dict.fromkeys((round(x, 1), round(y, 1)) for x, y in (*points, *others)))
    farthest = RINGS[-1] * height + width
    taken: list[Box] = []
    result: list[Point] = []
    for x, y in points:
        best: tuple[float, Point] | None = None
        near = [point for point in known if max(abs(point[0] - x), abs(point[1] - y)) <= farthest]
        dots = [_box(point, 0.6 * height, 0.6 * height) for point in near]
        for number in range(len(RINGS) * DIRECTIONS):
            reach, turn = RINGS[number // DIRECTIONS] * height, 2 * math.pi * (number % DIRECTIONS) / DIRECTIONS
            # start at the upper right
            middle = (x + reach * math.cos(turn + math.pi / 4), y + reach * math.sin(turn + math.pi / 4))
            box = _box(middle, width, height)
            cost = sum(_shared(box, other) for other in (*taken, *dots)) + _outside(box, frame)
            if best is None or cost < best[0] - 1e-9:
                best = (cost, middle)
            if cost == 0:
                break
        assert best is not None, "no place was tried"
        result.append(best[1])
        taken.append(_box(best[1], width, height))
    return result


def _box(middle: Point, width: float, height: float) -> Box:
    return middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2


def _shared(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, frame: Box) -> float:
    """Return the area of a box that lies outside the frame."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _shared(box, frame)
