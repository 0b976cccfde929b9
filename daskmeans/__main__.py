"""The command `daskmeans`. Ctrl-C ends it with one message at any time, even during the imports, which take seconds."""

import signal

from daskmeans.cli.interrupts import end_process


def main() -> None:
    """Run the command line of this process."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # shells ignore it for background jobs
        signal.signal(signal.SIGINT, end_process)
    from daskmeans.cli.main import kmeans

    try:
        kmeans(prog_name="daskmeans")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done, so there is nothing left to interrupt


if __name__ == "__main__":
    main()
