"""Task `long_prompts`: long texts made from a seed, in which some sentences name a code; the question asks for one.

A text is filler prose of about so many tokens, with the codes at random places. Only one code answers the question, and
it is a number of five digits, which a model can give only by finding it. This file makes texts and uses no tokenizer:
`CHARACTERS` characters count as a token. The splits are disjoint: a code's bucket is its split's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from specexp.errors import TaskError
from specexp.tasks.arith import SPLITS

CHARACTERS = 4.7  # per token of this prose, as tokenizers of English text have it
DEFAULT_TOKENS, FEWEST_TOKENS, MOST_TOKENS = 8192, 256, 131_072
NUM_CODES = 8  # in one text
INTRODUCTION = "Read this report. Here and there it names the code of a thing.\n\n"
QUESTION = "\n\nWhat is the code of the {thing}? End with #### and the code.\n"
CODE = "The code of the {thing} is {code}."

COLOURS = ("amber", "black", "blue", "brown", "green", "grey", "orange", "red", "silver", "white", "yellow")
THINGS = (
    "barrel", "basket", "bicycle", "bottle", "cabinet", "carpet", "clock", "curtain", "lantern", "mirror", "piano",
    "suitcase", "teapot", "umbrella", "wagon", "whistle",
)  # fmt: skip
PEOPLE = ("The gardener", "A neighbour", "The teacher", "The old captain", "A young baker", "The doctor", "Her brother")
VERBS = ("walked to", "asked about", "waited near", "talked about", "looked for", "came back from", "wrote about")
PLACES = ("the river", "the market", "the station", "the library", "the harbour", "the orchard", "the town hall")
TAILS = (
    "before the rain began", "while the children were at school", "as on every other morning", "and said very little",
    "because the bridge was closed", "and nobody was surprised", "with a letter in one hand", "until it was dark",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LongText:
    """A text with its question at the end; `places` are where its sentences with codes begin."""

    text: str
    code: str
    places: tuple[int, ...]


def long_text(split: str, num_tokens: int, index: int) -> LongText:
    """Return the text `index` of a split, which depends on nothing but these three. Raises TaskError."""
    if split not in SPLITS:
        raise TaskError(f"long_prompts has no split '{split}'. Known: {', '.join(SPLITS)}.")
    rng = random.Random(f"long_prompts {split} {num_tokens} {index}")
    things = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    named = rng.sample(things, NUM_CODES)
    codes = _codes(rng, split)
    facts = [CODE.format(thing=thing, code=code) for thing, code in zip(named, codes, strict=True)]
    end = QUESTION.format(thing=named[0])
    size = int(num_tokens * CHARACTERS) - len(INTRODUCTION) - len(end) - sum(len(fact) + 1 for fact in facts)
    prose: list[str] = []
    while size > 0:
        prose.append(_sentence(rng))
        size -= len(prose[-1]) + 1
    for fact in rng.sample(facts, len(facts)):
        prose.insert(rng.randrange(len(prose) + 1), fact)
    text = INTRODUCTION + " ".join(prose) + end
    return LongText(text, codes[0], tuple(text.index(fact) for fact in facts))


def _codes(rng: random.Random, split: str) -> list[str]:
    """Return different codes, of which each belongs to this split."""
    result: list[str] = []
    while len(result) < NUM_CODES:
        code = rng.randrange(10_000, 100_000)
        if code % 8 in SPLITS[split] and str(code) not in result:
            result.append(str(code))
    return result


def _sentence(rng: random.Random) -> str:
    return f"{rng.choice(PEOPLE)} {rng.choice(VERBS)} {rng.choice(PLACES)} {rng.choice(TAILS)}."
