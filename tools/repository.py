"""Which files belong to the repository: shared by the tools and the tests."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def tracked_files(*patterns: str) -> list[Path]:
    """The repository's files, those that git does not track yet but would, included."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (ROOT / line for line in sorted(set(listing.stdout.splitlines())))
    return [path for path in paths if path.is_file()]


def relative(path: Path) -> str:
    """A path as readers write it: from the top of the repository, with slashes."""
    return path.relative_to(ROOT).as_posix()
