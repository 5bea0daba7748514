"""`python -m specexp.lm_eval ...`: lm-evaluation-harness's command line, with the model `specexp` registered.

Release 0.4.13 of the harness finds no plug-ins; later ones find the model by the entry point `lm_eval.models`.
"""

from __future__ import annotations

import sys

from specexp.addresses import mask
from specexp.errors import ConfigError, SpecexpError

MISSING = "lm-evaluation-harness is not installed; pip install 'specexp[lm-eval]'."


def main() -> None:
    """Register the model and run the harness. Errors of settings and models end it with one line each."""
    try:
        import lm_eval.models  # noqa: F401 (registers the harness's own, which it does not do once there is another)
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "lm_eval":
            print(f"error: lm-evaluation-harness needs '{error.name}', which is not installed.", file=sys.stderr)
        else:
            print(f"error: {MISSING}", file=sys.stderr)
        sys.exit(SpecexpError.exit_code)
    import specexp.lm_eval.model  # noqa: F401

    try:
        cli_evaluate()
    except SpecexpError as error:
        for fault in error.faults if isinstance(error, ConfigError) else [str(error)]:
            print(f"error: {mask(' '.join(fault.splitlines()))}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
