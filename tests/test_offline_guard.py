"""The guard that keeps the test suite off the network works, or every other claim is hollow."""

import socket
import subprocess
import sys

import pytest

ATTEMPTS = [
    "socket.create_connection(('192.0.2.1', 80), timeout=1)",
    "socket.getaddrinfo('example.com', 80)",
    "__import__('requests').get('http://example.com', timeout=1)",
]


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_connections_to_other_machines_are_refused_in_this_process(attempt):
    with pytest.raises(OSError, match="no network in tests"):
        eval(attempt)


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_connections_to_other_machines_are_refused_in_child_processes(attempt):
    child = subprocess.run(
        [sys.executable, "-c", f"import socket; {attempt}"], capture_output=True, text=True
    )
    assert child.returncode != 0
    assert "no network in tests" in child.stderr


def test_loopback_works():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
