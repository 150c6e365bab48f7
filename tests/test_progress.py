"""What the test run says of itself."""

from types import SimpleNamespace

from progress import SECONDS_BETWEEN_LINES, Progress


def test_a_line_a_minute_says_how_far_how_long_and_what_runs():
    now, lines = [0.0], []
    terminal = SimpleNamespace(write_line=lines.append)
    progress = Progress(terminal, clock=lambda: now[0])
    progress.pytest_xdist_node_collection_finished(None, [str(i) for i in range(10)])
    progress.pytest_runtest_logstart("tests/test_long.py::test_long", None)
    for number in range(4):
        progress.pytest_runtest_logstart(f"test-{number}", None)
        now[0] += SECONDS_BETWEEN_LINES / 2
        progress.pytest_runtest_logfinish(f"test-{number}", None)
    assert [line.strip() for line in lines] == [
        "2 of 10 tests in 60 s, about 4 min left; "
        "tests/test_long.py::test_long has been running for 60 s",
        "4 of 10 tests in 2 min, about 3 min left; "
        "tests/test_long.py::test_long has been running for 120 s",
    ]
