"""The options that one command takes and others do not; what most commands take is in `schema.OPTIONS`.

An option whose default is `false` is a flag that also takes a value, as MLflow passes one (`--quick`, `--quick true`).
One whose default is `true` has its opposite as a flag (`--no-compiled`).
"""

from __future__ import annotations

from specexp.config.drafter import LONGEST_CHAIN
from specexp.config.mining import FEATURE_DTYPES
from specexp.config.parsers import EXECUTIONS
from specexp.config.setting import Option, quoted
from specexp.lm.runtime import DTYPES, OFFLOADS

BOOLEAN = "true or false"
REQUIRED = "none: it must be given"
TRAINABLE = ("arith", "arith_code")  # tasks that train_pair trains on


_METHOD = Option("Name the method preset.", "a preset's name", "speculative")
_JSON = Option("Write the numbers to this file, too.", "a file", otherwise="none")
_SHOW = Option(
    "Show prompts token by token in tokens.html: how many, or their ids separated by commas; 0 shows none.",
    "a number, or ids", "3",
)  # fmt: skip
WORKERS: dict[str, Option] = {
    "workers": Option(
        "Set how many processes of Ray share the prompts; 0 decodes in this process.", "a whole number >= 0",
        otherwise="0", more="[Scale](scale.md) has the details.",
    ),
    "ray": Option(
        "Say where they run: auto, local, ray://HOST:PORT or HOST:PORT.", "`auto`, `local` or an address",
        otherwise="auto: a cluster that runs here, or else this machine",
    ),
    "gpus_per_worker": Option(
        "Set how many GPUs each worker has; workers share one if it is below 1.", "a number >= 0", otherwise="0",
    ),
    "cpus_per_worker": Option(
        "Set how many CPUs each worker has, which is its number of threads.", "a number > 0", otherwise="1",
    ),
}  # fmt: skip

COMMAND_OPTIONS: dict[str, dict[str, Option]] = {
    "main": {
        "mine": Option("Set how many prompts labels are mined from.", "a whole number >= 1", "150"),
        "show": _SHOW,
    },
    "evaluate": {"show": _SHOW, **WORKERS},
    "benchmark": {
        "quick": Option(
            "Time few prompts, repeats and tokens: about a minute, where the models allow it.", BOOLEAN, "false"
        ),
        "compiled": Option("Also time generate() compiled: true or false.", BOOLEAN, otherwise="true unless quick"),
        "json": _JSON,
    },
    "advise": {
        "sweep": Option("Time every candidate, and say how far the recommendation is from the best.", BOOLEAN, "false"),
        "draft_cost": Option(
            "Say what a drafted token costs a served engine, in steps without a draft.", "a number >= 0",
            otherwise="measured where two engines tell it",
        ),
        **WORKERS,
    },
    "certify": {
        "method": Option("Name the method preset to examine.", "a preset's name", otherwise="`speculative`"),
        "samples": Option(
            "Set how many outputs are drawn at each place that is sampled.", "a whole number >= 100",
            otherwise="1,000; of an engine as many as `bias` needs",
        ),
        "engine": Option(
            "Examine a served engine: its address, or its name in the setting engine of the config file.",
            "an address or a name", otherwise="none",
        ),
        "engine_model": Option(
            "Name the model as the server at this address does.", "a text", otherwise="that of the config file"
        ),
        "against": Option(
            "Compare the engine with this one, which decodes without speculation.", "an address or a name",
            otherwise="none: with the weights alone",
        ),
        "weights": Option(
            "Compare the engine with the target's weights, too: true or false.", BOOLEAN,
            otherwise="true if `pair`, `target` or `toy` is given",
        ),
        "bias": Option(
            "Set the bias in an engine's samples that must be found, as total variation.", "a number from 0.01 to 0.5",
            otherwise="0.15",
        ),
        "engine_dtype": Option(
            "Say what the engine computes in: bfloat16, float16, float32 or float64.", "a dtype", otherwise="bfloat16",
            more="It decides how far apart two log-probabilities may be for a near tie.",
        ),
        **WORKERS,
    },
    "collect_labels": {
        "skip": Option(
            "Leave out so many prompts before them, for an evaluation on the same rows.", "a whole number >= 0",
            otherwise="0",
        ),
        "dtype": Option(
            f"Choose what features are kept in: {', '.join(FEATURE_DTYPES)}.", quoted(FEATURE_DTYPES),
            otherwise=FEATURE_DTYPES[0],
        ),
        **WORKERS,
    },
    "train_drafter": {
        "layers": Option(
            "Name the three layers of the target whose outputs the head reads, counted from 0.",
            "three numbers separated by commas", otherwise="the second, the middle and the last one",
        ),
        "hidden_size": Option("Set the head's hidden size.", "a whole number >= 0", otherwise="the target's"),
        "intermediate_size": Option(
            "Set the size of the head's feed-forward part.", "a whole number >= 0",
            otherwise="eight thirds of `hidden_size`",
        ),
        "most_ids": Option(
            "Set how many tokens the head scores: the most frequent ones.", "a whole number >= 1", otherwise="32,000",
            more="A smaller vocabulary is scored whole.",
        ),
        "depth": Option(
            "Set how many drafted tokens in a row the training looks ahead.",
            f"a whole number from 1 to {LONGEST_CHAIN}",
            otherwise="7",
        ),
        "passes": Option("Set how often the training goes over all outputs.", "a whole number >= 1", otherwise="3"),
        "train_batch": Option("Set how many outputs make a training step.", "a whole number >= 1", otherwise="16"),
        "skip": Option("Leave out so many prompts before them.", "a whole number >= 0", otherwise="0"),
        "timed": Option(
            "Decode so many prompts with the head and with the draft model, to compare their speed; 0 leaves it out.",
            "a whole number >= 0", "20",
        ),
        "name": Option("Name the registered model.", "a name", "drafter"),
    },
    "train_judge": {
        "labels": Option(
            "Give labels: a folder of collect_labels, or runs:/ID/labels.", "a folder or an address",
            otherwise="the newest in the store",
        ),
        "features": Option(
            "Choose the features: both, target, draft, these with _previous, each also with _scalars, or scalars.",
            "a name, or several separated by commas", "both",
        ),
        "recall": Option(
            "Set the recall of important mismatches, on the calibration split.", "a number in (0, 1]", "0.99"
        ),
        "kinds": Option(
            "Name the kinds of judge to train and compare.",
            "`mlp`, `logistic`, `trees`, or several separated by commas", "mlp,logistic",
        ),
        "name": Option("Name the registered model.", "a name", "autojudge"),
        "output": Option("Write to this folder.", "a folder", otherwise="a new one in `runs/`"),
        "seed": Option("Set the seed of the MLP and the trees.", "a whole number >= 0", "0"),
        "compare": Option("Compare every feature set that the labels store, and every kind.", BOOLEAN, "false"),
    },
    "judge_report": {
        "judge": Option("Give the judge: an address or a folder.", "an address or a folder",
                        "models:/autojudge@champion"),
        "labels": Option(
            "Give labels: a folder of collect_labels, or runs:/ID/labels.", "a folder or an address",
            otherwise="the newest in the store",
        ),
        "batch": Option("Set how many prompts are decoded together.", "a whole number >= 1", "16"),
        "output": Option("Write to this folder.", "a folder", otherwise="a new one in `runs/`"),
    },
    "calibrate_rule": {
        "labels": Option(
            "Give labels: a folder of collect_labels, or runs:/ID/labels.", "a folder or an address",
            otherwise="the newest in the store",
        ),
        "rules": Option(
            "Name the rules: typical, entropy, fly, fuzzy_js, fuzzy_kl, fuzzy_tv, relaxed; several by commas.",
            "names", otherwise="all",
        ),
        "loss": Option(
            "Set the largest share of the calibration split's prompts that may lose their answer.",
            "a number in [0, 1)", "0.01",
        ),
        "window": Option("Set the window of fly.", "a whole number >= 1", "6"),
        "accept_k": Option("Set K of relaxed.", "a whole number >= 1", "10"),
        "judge": Option(
            "Give the judge to compare with: an address or a folder, or none.", "an address, a folder or `none`",
            otherwise="`models:/autojudge@champion`, if it fits",
        ),
        "batch": Option("Set how many prompts are decoded together.", "a whole number >= 1", "16"),
        "output": Option("Write to this folder.", "a folder", otherwise="a new one in `runs/`"),
    },
    "generate": {
        "method": _METHOD,
        "json": Option("Print one JSON object in place of the text.", BOOLEAN, "false"),
    },
    "log_decoder": {
        "method": _METHOD,
        "most_new_tokens": Option(
            "Set the most tokens that a request may ask for.", "a whole number >= `max_new_tokens`",
            otherwise="what the models' context holds",
        ),
        "name": Option("Name the registered model that gets a new version.", "a name", "decoder"),
    },
    "serve": {
        "method": _METHOD,
        "name": Option("Name the model as requests name it.", "a name", otherwise="the target's"),
        "host": Option("Listen at this address.", "an address", "127.0.0.1"),
        "port": Option("Listen at this port; 0 takes a free one.", "a whole number >= 0 and at most 65535", "8000"),
        "rows": Option("Set how many outputs are decoded together.", "a whole number >= 1", "8"),
        "max_waiting": Option(
            "Set how many outputs may wait for a free row; more are refused with status 429.", "a whole number >= 0",
            "64",
        ),
        "most_new_tokens": Option(
            "Set the most tokens that a request may ask for.", "a whole number >= `max_new_tokens`",
            otherwise="what the models' context holds",
        ),
        "grace": Option(
            "Set how many seconds requests have to end after the server is told to stop.",
            "a whole number >= 0 and at most 3600", "30",
        ),
        "key_env": Option(
            "Name an environment variable that holds API keys, separated by commas; requests must send one.",
            "a variable's name", otherwise="none: no key is needed",
        ),
    },
    "upload": {
        "output": Option(
            "Give the folder that evaluate or another command has written.", "a folder", otherwise=REQUIRED
        ),
    },
    "validate": {
        "experiment": Option(
            "Name the experiment preset that the files are laid over.", "a preset's name", "arith_quick"
        )
    },
    "speed_check": {
        "shape": Option(
            "Choose the models' shape: llama-8b-1b, qwen3-8b-0.6b, llama-70b-8b, tiny.",
            "`llama-8b-1b`, `qwen3-8b-0.6b`, `llama-70b-8b`, `tiny`", "llama-8b-1b",
            more="`llama-70b-8b` needs `--offload`.",
        ),
        "device": Option(
            "Choose the device: cuda:0, cpu, ...", "a name", otherwise="cuda:0; for tiny, cpu where there is none"
        ),
        "dtype": Option(
            f"Choose the dtype: {', '.join(DTYPES)}.", quoted(DTYPES), "bfloat16"
        ),
        "gamma": Option("Set the draft length of a round.", "a whole number >= 1", "4"),
        "compiled": Option("Also time generate() compiled.", BOOLEAN, "true", more="With `--offload` it is refused."),
        "offload": Option(
            "Offload the target's layers to cpu or disk, and measure its calls in place of those in memory.",
            quoted(OFFLOADS), "none", more="[Offloaded layers](gpu.md#offloaded-layers) has the details.",
        ),
        "offload_memory": Option(
            "Let so many GiB of the offloaded target's layers stay on the device.",
            "a number >= 0 and below 1000000", otherwise="0: all of them come at each call",
        ),
        "acceptance": Option(
            "Assume that a drafted token is accepted with this probability, for the tokens per second with offload.",
            "a number above 0 and below 1", otherwise="0.8 with `--offload`",
        ),
        "json": _JSON,
    },
    "train_pair": {
        "models": Option(
            "Name the models to train, separated by commas.", "`draft`, `target`, or both", "draft,target"
        ),
        "work": Option("Keep checkpoints in this folder.", "a folder", "runs/train_pair"),
        "output": Option("Write the finished models to this folder.", "a folder", "runs/train_pair/zoo"),
        "steps": Option("Set the training steps.", "a whole number >= 1", otherwise="the recipe's"),
        "task": Option("Choose the task that they are trained on.", quoted(TRAINABLE), TRAINABLE[0]),
        "execute": Option(
            "Say where programs of outputs may run: none or sandbox.", quoted(EXECUTIONS), EXECUTIONS[0],
            more="Task `arith_code` needs `sandbox` to count what a model solves.",
        ),
    },
}  # fmt: skip
