"""The specification of a served decoder, by reference: settings of its pair and method, and what the weights must be.

`decoder.json` names models by folder, hub id and revision, or as the embedded ones, and keeps no copy of them; a judge
is small, and its copy is stored with it. Loading compares the models with those that were loaded when it was written.
This module does not know MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from specexp.api import LoadedPair, Output
from specexp.config import Experiment, MethodConfig, TreeConfig
from specexp.decoding.draft_length import RelativeCosts
from specexp.errors import ModelError
from specexp.lm.runtime import NO_TEMPLATE, OWN_TEMPLATE, ModelConfig, ToyConfig
from specexp.methods import roles_of
from specexp.serving import requests, tokenizers
from specexp.serving.batcher import Batcher
from specexp.storage.files import make_folder, write_whole
from specexp.tasks.source import DataConfig

FILE, JUDGE = "decoder.json", "judge"
MAX_BATCH_SIZE = 8  # prompts decoded together
# What must not have changed, and its name in messages.
MUST_FIT = {
    "target": "the target's weights",
    "draft": "the draft's weights",
    "tokenizer": "the tokenizer's vocabulary",
    "chat_template": "the chat template",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """One setting of one method on one pair. `folders` are the folders of local models at that time, by role.

    With gamma auto, drafts end by `draft_costs`, whatever they are where it is served: a seed keeps its tokens.
    """

    experiment: Experiment
    identity: Mapping[str, Any]
    most_new_tokens: int
    folders: Mapping[str, str]
    draft_costs: RelativeCosts | None = None

    def save(self, folder: Path) -> None:
        make_folder(folder)
        result = {**asdict(self), "specexp": version("specexp")}
        write_whole(folder / FILE, json.dumps(result, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Read what `save` wrote. Raises ModelError."""
        try:
            result = json.loads((folder / FILE).read_text(encoding="utf-8"))
            costs = result.get("draft_costs")
            return cls(
                _experiment(result["experiment"]), result["identity"], result["most_new_tokens"], result["folders"],
                None if costs is None else RelativeCosts.of(costs),
            )  # fmt: skip
        except Exception as error:  # the file is missing, cut off or edited by hand
            raise ModelError(f"the decoder in '{folder}' cannot be read: {type(error).__name__}: {error}") from error


def make_decoder_spec(pair: LoadedPair, asked: Experiment, most_new_tokens: int) -> Reference:
    """The reference of a loaded pair, with folders made absolute and revisions of the hub pinned."""
    roles = roles_of(asked.methods[0])
    identity = {key: value for key, value in pair.identity().items() if key not in ("target", "draft") or key in roles}
    folders: dict[str, str] = {}
    models = asked.models
    for role, model in models.items() if asked.toy is None else ():
        from specexp.lm.hf import source

        local = Path(source.resolve(model.model)).expanduser()
        if local.is_dir():
            folders[role] = str(local.resolve())
            if not model.model.startswith(source.ZOO_PREFIX):
                models[role] = replace(model, model=folders[role])
        elif identity.get(f"{role}_revision"):
            models[role] = replace(model, revision=identity[f"{role}_revision"])
        if model.tokenizer and Path(model.tokenizer).expanduser().is_dir():
            models[role] = replace(models[role], tokenizer=str(Path(model.tokenizer).expanduser().resolve()))
    if asked.toy is None:  # the outcome of `auto` is part of the version
        template = OWN_TEMPLATE if identity["chat_template"] else NO_TEMPLATE
        models = {role: replace(model, chat_template=template) for role, model in models.items()}
        if "vocabulary" in identity and not models["draft"].on_target:
            models["draft"] = replace(models["draft"], vocabulary=identity["vocabulary"])
    draft = models["draft"]
    if draft.eagle3 and Path(draft.eagle3).expanduser().is_dir():
        models["draft"] = replace(draft, eagle3=str(Path(draft.eagle3).expanduser().resolve()))
    asked = replace(asked, target=models["target"], draft=models["draft"])
    return Reference(asked, identity, most_new_tokens, folders, pair.draft_costs(asked.methods[0]))


class ServedDecoder:
    """A decoder loaded by reference and checked; several threads may call it at a time."""

    def __init__(self, folder: Path, max_batch_size: int = MAX_BATCH_SIZE, device: str = "") -> None:
        """Load what `decoder.json` in `folder` names, on `device` instead of the logged devices if it is given.

        Raises SpecexpError: ModelError if the weights or the tokenizer are not those that were logged.
        """
        self.reference = Reference.load(folder)
        experiment = _here(self.reference, device)
        if experiment.methods[0].judge:
            judged = replace(experiment.methods[0], judge=str(folder / JUDGE))
            experiment = replace(experiment, methods=(judged,))
        roles, costs = roles_of(experiment.methods[0]), self.reference.draft_costs
        self._pair = LoadedPair(experiment, roles=roles, draft_costs=costs)
        check(self._pair.identity(), self.reference)
        self._experiment = experiment
        self._texts = tokenizers.share(self._pair, experiment)
        self._batcher = Batcher(lambda: self._pair.engine(max_batch_size))

    def decode(self, prompts: Sequence[str], params: Mapping[str, Any] | None = None) -> list[Output]:
        """What `specexp.LoadedPair.generate` gives for each prompt with these parameters.

        Raises RequestError with every fault of the parameters, or for the first prompt that cannot be decoded.
        """
        asked = requests.settings(self._experiment, params, self.reference.most_new_tokens)
        wanted = []
        with self._texts.lend(sum(map(len, prompts))) as text:
            for number, prompt in enumerate(prompts, 1):
                with requests.numbered(number, len(prompts)):
                    wanted.append(self._pair.request(prompt, asked, text=text))
        result = self._batcher.decode(wanted)
        with self._texts.lend() as text:
            return [self._pair.output(out, each, asked, text) for out, each in zip(result, wanted, strict=True)]

    def stream(self, prompt: str, params: Mapping[str, Any] | None = None) -> Iterator[str | Output]:
        """Yield the text of what `decode` gives for one prompt in pieces, as rounds are committed, and then all of it.

        Text that may still become a stop string is held back. Raises as `decode` does.
        """
        asked = requests.settings(self._experiment, params, self.reference.most_new_tokens)
        heard: SimpleQueue[Sequence[int] | None] = SimpleQueue()  # the tokens of each round; None at the end
        with self._texts.lend(len(prompt)) as text, requests.numbered(1, 1):
            request = self._pair.request(prompt, asked, on_tokens=heard.put, text=text)
        (job,) = self._batcher.begin([request])
        job.add_done_callback(lambda done: heard.put(None))
        ready: list[str] = []
        pieces = self._pair.pieces(request, asked, ready.append, self._pair.spelled_by)
        while (tokens := heard.get()) is not None:
            pieces.add(tokens)
            yield from ready
            ready.clear()
        out = job.result()
        pieces.close()
        yield from ready
        yield self._pair.output(out, request, asked, self._pair.spelled_by)

    @property
    def most_bytes(self) -> int:
        """The most bytes that a request's body may have: those of its prompts, as JSON may write them."""
        prompt = max(self._pair.most_bytes(role) for role in roles_of(self._experiment.methods[0]))
        return min(requests.LONGEST_BODY, requests.SMALL_BODY + requests.MOST_PROMPTS * 6 * prompt)


def check(pair_identity: Mapping[str, Any], reference: Reference) -> None:
    """Refuse models that are not those of the reference. Raises ModelError with every difference."""
    faults = []
    for key, name in MUST_FIT.items():
        was, now = reference.identity.get(key), pair_identity.get(key)
        if key in reference.identity and was != now:
            faults.append(f"{name} ({key} was {was!r:.20}, is {now!r:.20})")
    if faults:
        experiment = reference.experiment
        raise ModelError(
            f"{' and '.join(faults)} are not what this decoder was logged with; put the logged ones back at"
            f" '{experiment.target.model}' and '{experiment.draft.shown}', or log the decoder again."
        )


def _here(reference: Reference, device: str) -> Experiment:
    """The experiment to load: embedded models that this package does not have are loaded from their old folders."""
    experiment = reference.experiment
    if experiment.toy is not None:
        return experiment
    from specexp.lm.hf import source

    models = experiment.models
    for role, model in models.items():
        if model.model.startswith(source.ZOO_PREFIX) and not Path(source.resolve(model.model)).is_dir():
            model = replace(model, model=reference.folders[role])
        models[role] = replace(model, device=device or model.device)
    return replace(experiment, target=models["target"], draft=models["draft"])


def _experiment(settings: Mapping[str, Any]) -> Experiment:
    """An `Experiment` from the output of `asdict`."""
    methods = tuple(
        MethodConfig(**{**each, "tree": TreeConfig(**each["tree"]) if each["tree"] else None})
        for each in settings["methods"]
    )
    return Experiment(
        **{
            **settings,
            "methods": methods,
            "stop": tuple(settings.get("stop", ())),
            **dict.fromkeys(("engine", "concurrency", "request_rate"), ()),  # a decoder is this package's own
            "target": ModelConfig(**settings["target"]),
            "draft": ModelConfig(**settings["draft"]),
            "toy": ToyConfig(**settings["toy"]) if settings["toy"] else None,
            **{key: DataConfig(**rows) if (rows := settings.get(key)) else None for key in ("data", "shots_data")},
        }
    )
