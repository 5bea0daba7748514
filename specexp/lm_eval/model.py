"""The model `specexp` of lm-evaluation-harness: any method decodes its prompts, and one model scores its continuations.

Prompts become tokens as in the harness's `hf` model, and texts are cut as there, so that a lossless method has the same
results. Unlike `hf`, it reads no sampling settings from a model's generation_config, and it scores in float32.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from specexp import config
from specexp.api import LoadedPair
from specexp.engine import Request
from specexp.errors import ConfigError, ModelError
from specexp.lm.devices import is_present
from specexp.lm_eval.generation import HarnessStop, OutputSettings, output_settings
from specexp.lm_eval.model_args import model_args
from specexp.lm_eval.scoring import Ids, likelihoods, within
from specexp.methods import main_role, roles_of
from specexp.pair.tokenization import TokenizerText

COUNTS = ("num_target_calls", "num_draft_calls", "num_drafted", "num_accepted", "num_judged")


@register_model("specexp")
class SpecexpLM(TemplateLM):  # type: ignore[misc]
    """One method on one pair. Its arguments are specexp's settings by name (`model_args.py`)."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        device = str(given.get("device") or "")
        if not is_present(device):  # the harness's command line has cuda:0 by default, and its `hf` then takes the CPU
            print(f"note: there is no device {device} here; the models run on the CPU.", file=sys.stderr)
            del given["device"]
        args = model_args(given)
        method = args.experiment.methods[0]
        self._pair = LoadedPair(args.experiment, args.settings, roles=roles_of(method))
        if not isinstance(self._pair.text, TokenizerText):
            raise ModelError(f"pair '{args.experiment.pair}' has no tokenizer, which the harness needs; name another.")
        self.tokenizer = self._pair.text.tokenizer
        self.batch_size, self.max_gen_toks = args.batch_size, args.max_gen_toks
        self._asked, self._role = args.experiment, main_role(method)
        self._pair.decoder(self._asked)  # what this pair cannot do is said before the first request
        self._outputs: Counter[str] = Counter()
        self._num_scored = 0  # positions fed for log-likelihoods

    @property
    def max_length(self) -> int:
        return self._pair.context_of(self._role)

    @property
    def eot_token_id(self) -> int | None:
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int | None:
        """What an empty context is: the BOS, or the EOS where there is none."""
        token: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if token is None else token

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; one that begins with the BOS gets no second one."""
        if add_special_tokens is None:
            prefix = "" if self.prefix_token_id is None else self.tokenizer.decode(self.prefix_token_id)
            add_special_tokens = not (prefix and has_bos_prefix(string, prefix))
        return [int(i) for i in self.tokenizer.encode(string, add_special_tokens=add_special_tokens)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without its system message where the template takes none, as `hf` does."""
        arguments: dict[str, Any] = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, **arguments))
        except TemplateError:
            history = [message for message in chat_history if message["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(history, **arguments))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text of each request up to the first of its strings, the longest prompts first."""
        times: Counter[tuple[Any, ...]] = Counter()
        work = []
        for instance in requests:
            key = (instance.task_name, instance.doc_id, instance.idx)
            asked = self._settings_of(instance.args[1])
            name = "-".join(map(str, (*key, times[key])))  # repeats of a document have draws of their own
            times[key] += 1
            work.append((asked, self._request(instance.args[0], asked, name)))
        order = sorted(range(len(work)), key=lambda i: -len(work[i][1].prompt_ids))
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            engine = self._pair.engine(self.batch_size)
            for place, out in engine.generate_all(work[i][1] for i in order):
                index = order[place]
                text = self.tokenizer.decode(list(out.token_ids), skip_special_tokens=True)
                texts[index] = postprocess_generated_text(text, list(work[index][0].until), None)
                self._outputs.update({name: getattr(out, name) for name in COUNTS})
                self._outputs["num_tokens"] += len(out.token_ids)
                self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                bar.update()
        return texts

    def _settings_of(self, given: dict[str, Any]) -> OutputSettings:
        normal = normalize_gen_kwargs(given, self.max_gen_toks)
        eos = None if self.eot_token_id is None else self.tokenizer.decode(self.eot_token_id)
        return output_settings(normal, handle_stop_sequences(normal["until"], eos))

    def _request(self, prompt: str, asked: OutputSettings, name: str) -> Request:
        """A prompt that is too long loses its beginning: the harness wants space for `max_gen_toks` after it."""
        space = self.max_length - asked.max_gen_toks
        if space <= 0:
            raise ConfigError(
                f"max_gen_toks is {asked.max_gen_toks}, but the model's context is {self.max_length}, which leaves no"
                " space for a prompt; lower it by --gen_kwargs."
            )
        bos = has_bos_prefix(prompt, self.tokenizer.bos_token)
        ids = [int(i) for i in self.tokenizer(prompt, add_special_tokens=not bos)["input_ids"]]
        settings = {**asked.settings, "max_new_tokens": asked.max_gen_toks}
        return self._pair.request_of_ids(
            ids[-space:], config.adjusted(self._asked, settings), name, HarnessStop(asked.until, self.tokenizer)
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        asked = [within(context, continuation, self.max_length) for _, context, continuation in requests]
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for index, result in self._scored(asked, disable_tqdm):
            results[index] = result
            if requests[index][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[index][0], result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of the model's context."""
        asked: list[tuple[Ids, Ids]] = []
        owners: list[int] = []
        for owner, instance in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(instance.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                asked.append(within(context, continuation, self.max_length))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for index, (log_probability, _) in self._scored(asked, disable_tqdm):
            totals[owners[index]] += log_probability
        for instance, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", instance.args, total)
        return totals

    def _scored(self, asked: Sequence[tuple[Ids, Ids]], disable_tqdm: bool) -> list[tuple[int, tuple[float, bool]]]:
        engine = self._pair.engine(self.batch_size, reuse=True)
        found = tqdm(
            likelihoods(engine, self._role, asked), total=len(asked), desc="Running loglikelihood requests",
            disable=disable_tqdm,
        )  # fmt: skip
        results = [(index, (each.log_probability, each.is_greedy)) for index, each in found]
        self._num_scored += sum(engine.spent(row)[f"{self._role}_positions"] for row in range(self.batch_size))
        return results

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results: the pair, the method, and what was counted."""
        counts: dict[str, float] = dict(self._outputs)
        if calls := counts.get("num_target_calls"):
            counts["tokens_per_call"] = counts["num_tokens"] / calls
        return {
            "specexp_method": self._asked.methods[0].label,
            "specexp_pair": self._pair.identity(),
            "specexp_counts": {**counts, "num_scored_positions": self._num_scored},
        }
