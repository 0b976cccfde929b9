"""The command `daskmeans`: Ctrl-C ends it with one message whenever it comes, from here on, as imports take seconds."""

import contextlib
import os
import signal
from typing import NoReturn

INTERRUPTED, STATUS = "interrupted; the same command goes on, or begins again where it cannot", 130


def leave(*_: object) -> NoReturn:
    """End this process, as a handler of a signal may; workers that it has started notice that it is gone, and end."""
    cursor = "\x1b[?25h" if os.isatty(2) else ""  # bars hide it
    with contextlib.suppress(OSError):
        os.write(2, f"{cursor}\nerror {INTERRUPTED}\n".encode())
    os._exit(STATUS)


def main() -> None:
    """Run the command line of this process."""
    signal.signal(signal.SIGINT, leave)
    from daskmeans.cli import main

    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done
