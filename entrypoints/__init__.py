"""Command line entry points: parse, resolve, call, exit code. `python -m entrypoints` lists them."""
