"""Runs an entry point in this process, which kills itself by a signal, so many seconds after it begins to send.

    python killed_process.py SIGNAL SECONDS COMMAND ARGUMENTS...

The clock starts where the outbox begins to send; a thread sends the signal, wherever the main thread is then.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from typing import Any


def main() -> None:
    number, seconds, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    from specexp.tracking import outbox

    real = outbox.send

    def send(*arguments: Any, **more: Any) -> Any:
        threading.Thread(target=kill, daemon=True).start()
        return real(*arguments, **more)

    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), number)

    outbox.send = send
    importlib.import_module(f"entrypoints.{command}").command(sys.argv[4:], prog_name=command)


if __name__ == "__main__":
    main()
