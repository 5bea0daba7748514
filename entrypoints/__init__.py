"""Command line entry points: parse, resolve, call, exit code. `specexp` lists them; in the installed package this
package is `specexp.entrypoints`."""
