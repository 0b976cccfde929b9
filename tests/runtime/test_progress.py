"""Progress is readable on a terminal of 80 columns and in a log, and says what an update of a fit has come to."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from daskmeans.cli.displays import PlainProgress, RichProgress, display_on
from daskmeans.runtime import progress
from daskmeans.runtime.progress import format_note


def update(phase: int, iteration: int, inertia: float, rows: int = 12_800_000) -> dict:
    facts = {"phase": phase, "phases": 5, "rows": rows, "iteration": iteration, "inertia": inertia}
    return facts | {"relabelled": rows // 80, "seconds": 2.5, "shift": 0.01, "compared": 0.3}


def terminal() -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None, legacy_windows=False)


def last_drawn(console: Console) -> list[str]:
    """Rows of what stands on the terminal in the end."""
    drawn = re.split(r"(?:\x1b\[2K|\x1b\[1A|\r)+", console.file.getvalue())[-1]  # each drawing erases the one before
    return [row.rstrip() for row in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).splitlines()]


def test_a_fit_is_readable_at_80_columns():
    console = terminal()
    with display_on(console) as display, progress.show_on(display):
        with progress.open_line("load vectors", 3) as line:
            line.advance()
        with progress.open_line("k-means", 300) as line:
            line.advance(format_note([update(1, 1, 8_000_000.0), update(1, 137, 7_990_400.0)]))
    assert isinstance(display, RichProgress)
    first, second, below = last_drawn(console)
    assert max(map(len, (first, second, below))) <= 80
    assert re.fullmatch(r"✓ load vectors +━+ 1/1 +0:00:00", first)
    assert re.fullmatch(r"✓ k-means +━+ 1/1 +0:00:00 sample 2 of 4, 12,800,000 rows", second)
    assert below == "  update 137 · inertia 7.9904e+06 (−0.12 %) · 1.2 % relabelled · 5.12M rows/s"


def test_a_log_gets_plain_rows():
    text = io.StringIO()
    with display_on(Console(file=text, width=80)) as display, progress.show_on(display):
        with progress.open_line("k-means [all]", 300) as line:
            line.advance(format_note([update(4, 1, 100.0)]))
            line.advance(format_note([update(4, 1, 100.0), update(4, 2, 90.0)]))
        with progress.open_line("assign", 7) as line:
            for _ in range(7):
                line.advance()
    assert isinstance(display, PlainProgress)
    fitted, assigned = text.getvalue().splitlines()
    told = "all 12,800,000 rows · update 2 · inertia 90 (−10 %) · 1.2 % relabelled · 5.12M rows/s"
    assert re.fullmatch(rf"k-means \[all\]: 2 in \d+\.\d s · {re.escape(told)}", fitted)
    assert re.fullmatch(r"assign: 7 in \d+\.\d s", assigned)
    assert "\x1b" not in text.getvalue()


def test_a_log_hears_of_work_that_takes_long():
    text = io.StringIO()
    with progress.show_on(PlainProgress(Console(file=text, width=80), every=0.0)):
        with progress.open_line("assign", 1200) as line:
            line.advance()
            line.advance()
        with progress.open_line("k-means") as line:
            line.advance("all rows\nupdate 1")
    rows = text.getvalue().splitlines()
    assert re.fullmatch(r"assign: 1 of 1,200, about .+ left", rows[0])
    assert re.fullmatch(r"assign: 2 of 1,200, about .+ left", rows[1])
    assert rows[3] == "k-means: 1 · all rows · update 1"
    assert len(rows) == 5


def test_a_log_shows_one_estimate_of_the_time_left():
    text = io.StringIO()
    display = PlainProgress(Console(file=text, width=80), every=0.0)
    with progress.show_on(display), progress.open_line("duplicates", 3) as line:
        line.advance("3k of 9k pairs, about 2 s left")
    assert text.getvalue().splitlines()[0] == "duplicates: 1 of 3 · 3k of 9k pairs, about 2 s left"


@pytest.mark.parametrize(
    ("iterations", "words"),
    [
        ([{"phase": "seed", "rows": 32_000, "seconds": 0.5}], "seed from 32,000 rows\n0.5 s"),
        ([{"iteration": 3, "inertia": 1234.5}], "update 3 · inertia 1,234.5"),
        ([{"iteration": 1, "inertia": 10.0}, {"iteration": 2, "inertia": 10.1}], "update 2 · inertia 10.1 (+1 %)"),
        ([{"iteration": 1, "inertia": 0.0}, {"iteration": 2, "inertia": 0.0}], "update 2 · inertia 0"),
        (
            [{"phase": 0, "phases": 2, "rows": 9, "iteration": 7, "inertia": 5.0},
             {"phase": 1, "phases": 2, "rows": 90, "iteration": 1, "inertia": 50.0, "relabelled": 0, "seconds": 0.0}],
            "all 90 rows\nupdate 1 · inertia 50 · 0 % relabelled",
        ),
    ],
    ids=["seed", "few facts", "worse", "all rows on centroids", "first of a phase"],
)  # fmt: skip
def test_a_note_tells_what_is_known(iterations, words):
    assert format_note(iterations) == words


def test_what_compiles_kernels_says_so_until_it_has_done_something():
    console, text = terminal(), io.StringIO()
    with display_on(console, {"assign"}) as display, progress.show_on(display), progress.open_line("assign", 5) as line:
        display._bars.refresh()
        assert "compiling kernels, once on this machine" in console.file.getvalue()
        line.advance()
    assert "compiling" not in "".join(last_drawn(console))
    with progress.show_on(display_on(Console(file=text, width=80), {"assign"})):
        for _ in range(2):  # the second time they are compiled
            with progress.open_line("assign", 1) as line:
                line.advance()
    assert [" compiling kernels" in row for row in text.getvalue().splitlines()] == [True, False, False]


def test_work_that_was_given_up_leaves_no_spinner():
    console, text = terminal(), io.StringIO()
    for display in (display_on(console), display_on(Console(file=text, width=80))):
        with (
            pytest.raises(KeyboardInterrupt),
            display,
            progress.show_on(display),
            progress.open_line("assign", 5) as line,
        ):
            line.advance()
            raise KeyboardInterrupt
    (row,) = last_drawn(console)
    assert re.fullmatch(r"✗ assign +.+ 1/5 +0:00:00 *", row)
    assert text.getvalue() == ""


def test_a_bar_says_how_much_time_is_left():
    console = terminal()
    with display_on(console) as display, progress.show_on(display), progress.open_line("assign", 5) as line:
        line.advance()
        display._bars.refresh()
        assert re.search(r"1/5 .*about .+ left", console.file.getvalue())
