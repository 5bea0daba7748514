"""Translates between the tokens of two tokenizers: by the text of each token, and by tokenizing text again.

A token's text is its bytes, so that byte-level tokens and sentencepiece's compare: `Ġthe` and `▁the` are both " the",
`<0x0A>` and `Ċ` both a line end. Special tokens have no text: they are the same if their names are, and the tokens that
end a text are the same in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

_LEAST = 48  # tokens of a part that is tokenized by itself, and then those up to the next word
_SIGNS = frozenset(bytes([byte]) for byte in range(33, 127))
_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # that byte-level vocabularies write as themselves


def _byte_signs() -> dict[str, int]:
    """The byte that each sign of a byte-level vocabulary stands for (GPT-2's table)."""
    others = [byte for byte in range(256) if byte not in _BYTES]
    return {**{chr(byte): byte for byte in _BYTES}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


class Vocabulary:
    """One tokenizer's tokens and their bytes."""

    def __init__(self, tokenizer: Any, eos_ids: Collection[int]) -> None:
        self.tokenizer, self.eos_ids = tokenizer, frozenset(eos_ids)
        known: dict[str, int] = tokenizer.get_vocab()
        self.size, self.num_tokens = max(known.values()) + 1, len(known)
        added = {int(i): each for i, each in tokenizer.added_tokens_decoder.items()}
        special = {int(i) for i in tokenizer.all_special_ids} | self.eos_ids
        self.special = {i: str(each.content) for i, each in added.items() if each.special or i in special}
        self.special |= {i: name for name, i in known.items() if i in special}
        self.named = {name: i for i, name in self.special.items()}
        signs, backend = _byte_signs(), getattr(tokenizer, "backend_tokenizer", None)
        continues = "##" if type(getattr(backend, "model", None)).__name__ == "WordPiece" else ""
        self._single_bytes: set[int] = set()  # tokens such as <0x0A>
        self.byte_level = sum(name.startswith("Ġ") for name in known) > sum(name.startswith("▁") for name in known)
        self.bytes: list[bytes] = [b""] * self.size
        for name, i in known.items():
            if i in self.special:
                continue
            if i in added:
                content = str(added[i].content)
                content = content if self.byte_level else content.replace("▁", " ")
                self.bytes[i] = content.encode("utf-8", "surrogatepass")
            elif self.byte_level:
                self.bytes[i] = bytes(signs[sign] for sign in name) if all(s in signs for s in name) else name.encode()
            elif len(name) == 6 and name.startswith("<0x"):
                self.bytes[i] = bytes([int(name[3:5], 16)])
                self._single_bytes.add(i)
            else:
                self.bytes[i] = name.removeprefix(continues).replace("▁", " ").encode("utf-8", "surrogatepass")

    @property
    def end(self) -> int | None:
        """The token that ends a text; where there are several, the tokenizer's own."""
        own = self.tokenizer.eos_token_id
        return own if own in self.eos_ids else min(self.eos_ids, default=None)

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The id of each text; of several the lowest that is no single byte's name."""
        result: dict[bytes, int] = {}
        for i in sorted(range(self.size), key=lambda i: (i in self._single_bytes, i)):
            if self.bytes[i]:
                result.setdefault(self.bytes[i], i)
        return result

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, without a character that is not complete."""
        return b"".join(self.bytes[i] for i in ids).decode("utf-8", "ignore")

    def encode(self, text: str, begins: bool) -> list[int]:
        """The tokens of a text at the beginning of a sequence, or of one that follows other text."""
        if not text:
            return []
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if begins or self.byte_level or backend is None:
            return [int(i) for i in self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        # Sentencepiece puts a space before a text; its model by itself does not.
        return [int(token.id) for token in backend.model.tokenize(text.replace(" ", "▁"))]

    def parts(self, ids: Sequence[int], start: int = 0) -> Iterator[tuple[bool, tuple[int, ...]]]:
        """Runs of ids from `start`, where one begins, with whether they begin a text; special tokens by themselves.

        What follows changes no run but the last. Each ends before a word, once it is long enough: a space after a sign
        that is none begins a token with every tokenizer that keeps words apart.
        """
        run: list[int] = []
        begins = not start or ids[start - 1] in self.special
        for token in ids[start:]:
            if token in self.special:
                if run:
                    yield begins, tuple(run)
                yield True, (token,)
                run, begins = [], True
            else:
                # Only after an ASCII sign: the bytes of a character that is not complete are no text.
                if len(run) >= _LEAST and self.bytes[token][:1] == b" " and self.bytes[run[-1]][-1:] in _SIGNS:
                    yield begins, tuple(run)
                    run, begins = [], False
                run.append(token)
        if run:
            yield begins, tuple(run)


class TokenizerTranslation:
    """The `Translation` between two tokenizers. `suppressed` are ids that the target never emits."""

    def __init__(self, target: Vocabulary, draft: Vocabulary, suppressed: Collection[int] = ()) -> None:
        self._target, self._draft = target, draft
        self._begin = self._first_ids()
        self.common = [-1 if i in suppressed else self._same(i) for i in range(target.size)]
        self._own_part: Callable[[bool, tuple[int, ...]], tuple[int, ...]] = lru_cache(maxsize=1 << 14)(
            self._translated
        )

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Both tokenizers, by the names under which transformers' generate() takes them."""
        return {"tokenizer": self._target.tokenizer, "assistant_tokenizer": self._draft.tokenizer}

    def _first_ids(self) -> list[int]:
        """The special tokens that the draft's tokenizer puts before every text."""
        ids = [int(i) for i in self._draft.tokenizer("a")["input_ids"]]
        end = next((place for place, token in enumerate(ids) if token not in self._draft.special), 0)
        return ids[:end]

    def _same(self, token: int) -> int:
        """The draft's id of a token of the target; -1 if it has none."""
        target, draft = self._target, self._draft
        if token not in target.special:
            text = target.bytes[
                token
            ]  # of two tokens with one text, the one that the tokenizer does not write has none
            return draft.by_bytes.get(text, -1) if target.by_bytes.get(text) == token else -1
        named = draft.named.get(target.special[token])
        if named is None and token == target.end and draft.end is not None:
            return draft.end if draft.special.get(draft.end) not in target.named else -1
        return -1 if named is None else named

    def own(self, ids: Sequence[int]) -> list[int]:
        return self.begun([token for _, part in self.own_parts(ids, 0) for token in part])

    def own_parts(self, ids: Sequence[int], start: int) -> Iterator[tuple[int, Sequence[int]]]:
        for begins, run in self._target.parts(ids, start):
            yield len(run), self._own_part(begins, run)

    def begun(self, own: list[int]) -> list[int]:
        return own if own[: len(self._begin)] == self._begin else self._begin + own

    def _translated(self, begins: bool, run: tuple[int, ...]) -> tuple[int, ...]:
        target, draft = self._target, self._draft
        if run[0] in target.special:
            token = run[0]
            if token == target.tokenizer.bos_token_id:
                return tuple(self._begin)
            same = self.common[token]
            return (same,) if same >= 0 else tuple(draft.encode(target.special[token], True))
        text = target.text(run)
        if begins and not target.byte_level:
            text = text.removeprefix(" ")  # that sentencepiece put there
        return tuple(draft.encode(text, begins))

    def continued(self, ids: Sequence[int], own: Sequence[int]) -> list[int]:
        result: list[int] = []
        run: list[int] = []
        for token in own:
            if token not in self._draft.special:
                run.append(token)
                continue
            result += self._target.encode(self._draft.text(run), bool(result))
            run = []
            named = self._target.named.get(self._draft.special[token])
            if named is None and self.ends(token):
                named = self._target.end
            if named is None:  # nothing is drafted behind a token that the target does not have
                return result
            result.append(named)
            if named in self._target.eos_ids:
                return result
        return result + self._target.encode(self._draft.text(run), bool(result))[:-1]

    def ends(self, own: int) -> bool:
        return own in self._draft.eos_ids
