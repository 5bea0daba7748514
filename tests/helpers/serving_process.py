"""Requests to a served decoder: valid ones in every form, and invalid ones of every kind."""

from __future__ import annotations

import json
from typing import Any

GOOD_FORMS = {
    "records": lambda prompts, params: {"dataframe_records": [{"prompt": p} for p in prompts], "params": params},
    "split": lambda prompts, params: {
        "dataframe_split": {"columns": ["prompt"], "data": [[p] for p in prompts]}, "params": params,
    },
    "a list": lambda prompts, params: {"inputs": prompts, "params": params},
    "a list of rows": lambda prompts, params: {"inputs": [{"prompt": p} for p in prompts], "params": params},
    "a column": lambda prompts, params: {"inputs": {"prompt": prompts}, "params": params},
    "instances": lambda prompts, params: {"instances": prompts, "params": params},
    "bare": lambda prompts, params: {"prompt": prompts, **params},
}  # fmt: skip


def one(prompt: Any, **params: Any) -> bytes:
    return json.dumps({"dataframe_records": [{"prompt": prompt}], "params": params}).encode()


JSON = "application/json"
# Name: (body, content type, what the reason contains).
BAD: dict[str, tuple[bytes, str | None, str]] = {
    "no JSON": (b'{"inputs": ["a"', JSON, "the body is not JSON: Expecting ',' delimiter"),
    "an empty body": (b"", JSON, "the body is not JSON: Expecting value"),
    "no UTF-8": (b'{"inputs": ["\xff"]}', JSON, "the body is not UTF-8 text (byte 13)."),
    "too deep": (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON, "the body is nested too deep."),
    "a list": (b'["a"]', JSON, "the body must be an object such as"),
    "a key twice": (b'{"inputs": ["a"], "inputs": ["b"]}', JSON, "'inputs' is given twice; give it once."),
    "another content type": (b'{"inputs": ["a"]}', "text/plain", "must be application/json; got text/plain"),
    "no content type": (b'{"inputs": ["a"]}', None, "The content type must be application/json; there is none"),
    "another charset": (b'{"inputs": ["a"]}', f"{JSON}; charset=latin-1", "only supports UTF-8"),
    "no fields": (b"{}", JSON, "prompts are taken in one of dataframe_records, "),
    "params alone": (b'{"params": {}}', JSON, "or prompt, got 'params'."),
    "two fields": (b'{"inputs": ["a"], "instances": ["a"]}', JSON, "got inputs and instances together."),
    "parameters misplaced": (b'{"inputs": ["a"], "seed": 1}', JSON, "unknown key 'seed' next to 'inputs'; parameters"),
    "no prompts": (b'{"inputs": []}', JSON, "no prompt is given; give one at least."),
    "too many prompts": (json.dumps({"inputs": ["a"] * 257}).encode(), JSON, "a request may have 256: send several."),
    "an unknown column": (
        b'{"dataframe_records": [{"prompt": "a", "prmpt": "b"}]}', JSON, "unknown column 'prmpt', did you mean",
    ),
    "an unknown column of a split": (
        b'{"dataframe_split": {"columns": ["prompt", "x"], "data": [["a", 1]]}}', JSON, "unknown column 'x'",
    ),
    "a split without columns": (b'{"dataframe_split": {"data": [["a"]]}}', JSON, "needs the lists columns and data."),
    "a column missing": (b'{"dataframe_records": [{}]}', JSON, "column prompt is missing."),
    "null": (one(None), JSON, "prompt 1 is null; it must be text."),
    "a number": (one(5), JSON, "prompt 1 is 5; it must be text."),
    "a switch": (b'{"inputs": ["a", true]}', JSON, "prompt 2 is true or false; it must be text."),
    "an object": (one({"a": 1}), JSON, "prompt 1 is an object; it must be text."),
    "an empty prompt": (one(" \n"), JSON, "the prompt is empty; give it some text."),
    "one of two empty": (b'{"inputs": ["a", ""]}', JSON, "prompt 2: the prompt is empty; give it some text."),
    "half a character": (b'{"inputs": ["\\ud800"]}', JSON, "'\\ud800', half of a character"),
    "too long a prompt": (one("Mia has 4 apples. " * 300), JSON, "but the target model's context is 512; shorten it"),
    "a huge prompt": (one("Mia has 4 apples. " * 3_000), JSON,
                      "the prompt has 54000 bytes; the model's context takes at most 6144: shorten it."),
    "a huge body": (b'{"inputs": ["' + b"a" * 10_000_000 + b'"]}', JSON,
                    "the body has 10000016 bytes; this decoder takes at most 9502720: send shorter prompts, or fewer"),
    "a number without end": (b'{"inputs": ["a"], "params": {"top_k": ' + b"9" * 5000 + b"}}", JSON, "is not JSON: "),
    "top_k beyond any vocabulary": (one("a", top_k=2**31), JSON, "top_k is 2147483648; it must be a whole number >= 0"),
    "a huge top_k": (one("a", top_k=2**40), JSON, "top_k is 1099511627776; it must be a whole number >= 0 (0 = off)"),
    "top_k beyond 64 bits": (one("a", top_k=2**70), JSON, "and at most 2147483647, more than any vocabulary has."),
    "a huge number of tokens": (one("a", max_new_tokens=2**70), JSON, "this decoder emits at most 512."),
    "a temperature beyond any float": (one("a", temperature=10**400), JSON, "temperature"),
    "top_k as a switch": (one("a", top_k=True), JSON, "`<class 'bool'>` to `DataType.long` for value"),
    "top_k of minus 0": (one("a", top_k=-0.0), JSON, "`<class 'float'>` to `DataType.long`"),
    "a seed as a switch": (one("a", seed=False), JSON, "`<class 'bool'>` to `DataType.long` for value"),
    "a temperature as a switch": (one("a", temperature=True), JSON, "`<class 'bool'>` to `DataType.double` for value"),
    "top_p of minus 0": (one("a", top_p=-0.0), JSON, "top_p is -0.0; it must be a number in (0, 1] (1 = off)."),
    "cold": (one("a", temperature=-1.0), JSON, "temperature is -1.0; it must be a number >= 0"),
    "no number": (b'{"inputs": ["a"], "params": {"temperature": NaN}}', JSON, "temperature is nan; it must be a"),
    "endless": (b'{"inputs": ["a"], "params": {"temperature": Infinity}}', JSON, "temperature is inf; it must be a"),
    "top_p above 1": (one("a", top_p=1.5), JSON, "top_p is 1.5; it must be a number in (0, 1] (1 = off)."),
    "top_p of 0": (one("a", top_p=0.0), JSON, "top_p is 0.0; it must be a number in (0, 1] (1 = off)."),
    "top_k below 0": (one("a", top_k=-1), JSON, "top_k is -1; it must be a whole number >= 0"),
    "a seed below 0": (one("a", seed=-1), JSON, "seed is -1; it must be a whole number >= 0."),
    "no tokens": (one("a", max_new_tokens=0), JSON, "max_new_tokens is 0; it must be a whole number >= 1."),
    "too many tokens": (one("a", max_new_tokens=10**9), JSON, "max_new_tokens is 1000000000; this decoder emits at"),
    "a fraction of tokens": (one("a", max_new_tokens=7.0), JSON, "`<class 'float'>` to `DataType.long`"),
    "tokens as text": (one("a", max_new_tokens="7"), JSON, "`<class 'str'>` to `DataType.long` for value `7`"),
    "tokens as a switch": (one("a", max_new_tokens=True), JSON, "`<class 'bool'>` to `DataType.long` for value"),
    "tokens as a list": (one("a", max_new_tokens=[7]), JSON, "Value must be a scalar for type `DataType.long`"),
    "a stop string that is none": (one("a", stop=5), JSON, "stop is 5; it must be a text, or a list of texts."),
    "a list of no stop strings": (one("a", stop=["b", 1]), JSON, "stop is a list; it must be a text, or a list of"),
    "an empty stop string": (one("a", stop=[""]), JSON, "stop is ['']; it must be a text that is not empty, or a"),
    "too many stop strings": (one("a", stop=[str(i) for i in range(65)]), JSON, "or a list of at most 64 such as"),
    "an unknown parameter": (one("a", temprature=1.0), JSON, "unknown parameter 'temprature', did you mean"),
    "params as a list": (b'{"inputs": ["a"], "params": [1]}', JSON, "params must be an object, got a list."),
    "an unknown bare parameter": (b'{"prompt": "a", "n": 2}', JSON, "unknown parameter 'n'."),
}  # fmt: skip
