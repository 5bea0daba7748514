"""Two toy vocabularies over the letters a, b and c: each spells the other's text by its longest tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Vocabulary = tuple[str, ...]  # the text of each id; an empty one ends the text


@dataclass(frozen=True, slots=True)
class ToyTranslation:
    """A `Translation` between vocabularies that can spell every letter of each other's text."""

    target: Vocabulary
    draft: Vocabulary

    @property
    def common(self) -> list[int]:
        return [self.draft.index(text) if text in self.draft else -1 for text in self.target]

    @property
    def tokenizers(self) -> dict[str, object]:
        return {}

    def own(self, ids: Sequence[int]) -> list[int]:
        """A text end within `ids` stays one."""
        result: list[int] = []
        text = ""
        for token in ids:
            text += self.target[token]
            if not self.target[token]:
                result += [*spelled(self.draft, text), self.draft.index("")]
                text = ""
        return result + spelled(self.draft, text)

    def own_parts(self, ids: Sequence[int], start: int) -> Iterator[tuple[int, Sequence[int]]]:
        if start < len(ids):
            yield len(ids) - start, self.own(ids[start:])

    def begun(self, own: list[int]) -> list[int]:
        return own

    def continued(self, ids: Sequence[int], own: Sequence[int]) -> list[int]:
        texts = [self.draft[token] for token in own]
        if "" in texts:
            return [*spelled(self.target, "".join(texts[: texts.index("")])), self.target.index("")]
        return spelled(self.target, "".join(texts))[:-1]

    def ends(self, own: int) -> bool:
        return not self.draft[own]


def spelled(vocabulary: Vocabulary, text: str) -> list[int]:
    """The ids of a text, the longest token first, up to what the vocabulary cannot spell."""
    result = []
    while fitting := [each for each in vocabulary if each and text.startswith(each)]:
        token = max(fitting, key=len)
        result.append(vocabulary.index(token))
        text = text[len(token) :]
    return result
