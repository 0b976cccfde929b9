"""The command `daskmeans`: Ctrl-C ends it with one message whenever it comes, from here on, as imports take seconds."""

import signal

from daskmeans.interrupts import leave


def main() -> None:
    """Run the command line of this process."""
    signal.signal(signal.SIGINT, leave)
    from daskmeans.cli import kmeans

    try:
        kmeans(prog_name="daskmeans")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done


if __name__ == "__main__":
    main()
