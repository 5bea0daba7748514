"""The tests of a HumanEval problem (Chen et al. 2107.03374), one for each assertion where that changes nothing.

A problem's `test` defines `check(candidate)`, whose assertions usually stand one below the other. Then each is a test
of its own, so that programs are compared by which of them they pass; a program passes them all where it passes
`check`. Where statements with an assertion set what later ones read, `check` as a whole is the one test.
"""

from __future__ import annotations

import ast

from specexp.sandbox.job import CodeTest


def tests_of(test: str, entry_point: str) -> tuple[CodeTest, ...]:
    """Return the tests that the text of a problem's `test` makes of the function `entry_point`.

    Raises SyntaxError or ValueError if it is no Python, or defines no `check`.
    """
    tree = ast.parse(test)
    places = [i for i, node in enumerate(tree.body) if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not places:
        raise ValueError("it defines no function check")
    function = tree.body[places[-1]]
    assert isinstance(function, ast.FunctionDef)
    call = f"\ncheck({entry_point})\n"
    body = function.body
    asserting = [i for i, node in enumerate(body) if any(isinstance(part, ast.Assert) for part in ast.walk(node))]
    if len(asserting) < 2 or _depends(body, asserting) or len(function.args.args) != 1:
        return (CodeTest(test + call),)
    result = []
    for place in asserting:
        function.body = [node for i, node in enumerate(body[: place + 1]) if i == place or i not in asserting]
        result.append(CodeTest(ast.unparse(tree) + call))
    function.body = body
    return tuple(result)


def _depends(body: list[ast.stmt], asserting: list[int]) -> bool:
    """True if a statement with an assertion sets a name that a later one reads, or may leave `check`."""
    for place in asserting:
        parts = list(ast.walk(body[place]))
        if any(isinstance(part, ast.Return) for part in parts):
            return True
        names = {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
        later = {part.id for node in body[place + 1 :] for part in ast.walk(node) if isinstance(part, ast.Name)}
        if names & later:
            return True
    return any(isinstance(part, ast.Return) for node in body for part in ast.walk(node))
