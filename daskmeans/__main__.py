"""The command `daskmeans`: Ctrl-C ends it with one message whenever it comes, from here on, as imports take seconds."""

import signal

from daskmeans.cli.interrupts import end_process


def main() -> None:
    """Run the command line of this process."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as shells do for what runs in the background
        signal.signal(signal.SIGINT, end_process)
    from daskmeans.cli.main import kmeans

    try:
        kmeans(prog_name="daskmeans")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done


if __name__ == "__main__":
    main()
