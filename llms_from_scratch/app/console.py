"""Printing on consoles of all kinds."""

import sys


def tolerate_any_console() -> None:
    """Print "?" for what the console cannot show (an old code page, say), instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
