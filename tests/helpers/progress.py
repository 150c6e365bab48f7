"""Once a minute, a line that says how far a test run is, how long it will last, and what runs."""

import time

SECONDS_BETWEEN_LINES = 60


class Progress:
    """A plugin of pytest for the process that shows results, with or without workers."""

    def __init__(self, terminal, clock=time.monotonic):
        self.terminal = terminal
        self.clock = clock
        self.started = self.shown = clock()
        self.running: dict[str, float] = {}
        self.total = self.done = 0

    def pytest_collection_finish(self, session):
        self.total = len(session.items)

    def pytest_xdist_node_collection_finished(self, node, ids):
        self.total = len(ids)

    def pytest_runtest_logstart(self, nodeid, location):
        self.running[nodeid] = self.clock()

    def pytest_runtest_logfinish(self, nodeid, location):
        self.running.pop(nodeid, None)
        self.done += 1
        if self.clock() - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = self.clock()
            self.terminal.write_line(f"\n{self.line()}")

    def line(self) -> str:
        seconds = self.clock() - self.started
        left = seconds / self.done * (self.total - self.done)
        times = f"{minutes(seconds)}, about {minutes(left)} left"
        text = f"{self.done} of {self.total} tests in {times}"
        if self.running:
            nodeid, begun = min(self.running.items(), key=lambda item: item[1])
            text += f"; {nodeid} has been running for {self.clock() - begun:.0f} s"
        return text


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
