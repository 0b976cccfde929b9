"""The hashes of what CI installs: write them to ci/lock.txt, or hold what was installed against them.

python ci/hashes.py write              those of ci/constraints.txt, for the Python and the machine that this runs on
python ci/hashes.py check REPORT...    what pip has installed, as `pip install --report REPORT` tells

`pip install --no-deps --require-hashes --requirement ci/lock.txt` takes the same file.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CI = Path(__file__).parent
LOCK = CI / "lock.txt"
# Where a package has other files for other machines, its hash holds on those only that agree in these.
PLACE = ("implementation_name", "python_version", "sys_platform", "platform_machine")
HEAD = """\
# ci/constraints.txt with the hashes of the files that pip takes for
# {place}
# Made by ci/hashes.py; do not edit.
"""


def place_of(report: dict[str, Any]) -> str:
    """For which Python and machine pip has reported."""
    return " ".join(report["environment"][name] for name in PLACE)


def packages(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Requirement and hash of all that pip has installed from an index."""
    for item in report["install"]:
        if archive := item["download_info"].get("archive_info"):  # there is none for this checkout
            name = item["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
            yield f"{name}=={item['metadata']['version']}", archive["hashes"]["sha256"]


def write() -> None:
    """Ask pip which files it would take, and write their hashes."""
    wanted = ["--only-binary", ":all:", "--no-deps", "--requirement", str(CI / "constraints.txt")]
    asked = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", *wanted]
    told = subprocess.run([sys.executable, "-m", "pip", *asked], stdout=subprocess.PIPE, check=True).stdout
    report = json.loads(told)
    lines = [f"{pin} --hash=sha256:{digest}\n" for pin, digest in sorted(packages(report))]
    LOCK.write_text(HEAD.format(place=place_of(report)) + "".join(lines))


def faults(lock: str, reports: Sequence[dict[str, Any]]) -> list[str]:
    """What of `reports` was not installed from the files whose hashes stand in `lock`."""
    known = dict(line.split(" --hash=sha256:") for line in lock.splitlines() if "--hash" in line)
    told = []
    for pin, digest in sorted({each for report in reports for each in packages(report)}):
        if pin not in known:
            told.append(f"{pin} was installed, and is not in ci/lock.txt")
        elif digest != known[pin]:
            told.append(f"{pin} was installed from a file with the sha256 {digest}, ci/lock.txt has {known[pin]}")
    return told


def check(paths: Sequence[str]) -> None:
    """End with status 1 if the reports at `paths` tell of packages with other hashes; only where the lock is for."""
    lock, reports = LOCK.read_text(), [json.loads(Path(path).read_text()) for path in paths]
    places = {place_of(report) for report in reports}
    if not all(f"# {place}\n" in lock for place in places):
        print(f"ci/lock.txt has the hashes for another place than {', '.join(places)}: nothing was compared")
        return
    if told := faults(lock, reports):
        sys.exit("\n".join([*told, "if that is as it should be: ci/constraints.sh, or ci/hashes.py write"]))
    count = len({pin for report in reports for pin, _ in packages(report)})
    print(f"{count} packages were installed from the files whose hashes are in ci/lock.txt")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write"]:
            write()
        case ["check", *paths] if paths:
            check(paths)
        case _:
            sys.exit(__doc__)
