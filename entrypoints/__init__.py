"""Command line entry points: parse, resolve, call, exit code. `specexp` lists them; installed, this is
`specexp.entrypoints`."""
