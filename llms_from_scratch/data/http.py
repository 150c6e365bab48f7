"""One file over HTTP: resumed after a cut, checked, and moved into place only when it is whole."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import requests
from filelock import FileLock
from tqdm import tqdm

CONNECT_TIMEOUT = 10.0  # seconds until a server must answer
READ_TIMEOUT = 15.0  # seconds without a single byte
TRIES = 4  # a URL is given up after this many tries, or at once if a try brings nothing new
CHUNK = 1 << 16
CUT_OFF = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class DownloadError(RuntimeError):
    """No source gave the wanted file; the message says what each of them did."""


def download(urls: list[str], target: Path, check: Callable[[Path], None]) -> Path:
    """Download the first of ``urls`` that works to ``target``, and return it.

    ``check`` gets the path of the complete download and raises ``ValueError`` if it is not the
    wanted file. ``target`` either does not exist or passed the check, whatever happens: bytes go to
    a file with a unique name that ends in ``.part``, which a later call takes over and continues.
    Processes that want the same file wait for the one that downloads it.

    Raises ``DownloadError`` if all URLs fail. A server that does not answer costs at most
    ``CONNECT_TIMEOUT`` plus ``READ_TIMEOUT`` seconds.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_file():
            return target  # another process was faster
        part = _adopt_part(target)
        failures = []
        for url in urls:
            try:
                _download_and_check(url, part, check)
                os.replace(part, target)
                return target
            except requests.RequestException as error:
                failures.append(f"{url}: {_reason(error)}")  # the part stays for the next try
            except ValueError as error:
                failures.append(f"{url}: {error}")
    raise DownloadError("\n".join(failures))


def _download_and_check(url: str, part: Path, check: Callable[[Path], None]) -> None:
    """Complete ``part``; if what an earlier call left of it does not fit, start over once."""
    for is_fresh in (not part.exists(), True):
        _download_with_retries(url, part)
        try:
            return check(part)
        except ValueError:
            part.unlink()  # the wrong file: of no use to anybody
            if is_fresh:
                raise


def _adopt_part(target: Path) -> Path:
    """A part file that belongs to this call alone, begun by an earlier call if there was one."""
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    leftovers = sorted(target.parent.glob(f"{target.name}.*.part"), key=lambda p: p.stat().st_size)
    if leftovers:
        os.replace(leftovers.pop(), part)
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return part


def _download_with_retries(url: str, part: Path) -> None:
    for attempt in range(1, TRIES + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            return _append_rest(url, part)
        except CUT_OFF as error:
            received_some = part.exists() and part.stat().st_size > before
            if attempt == TRIES or not received_some:
                raise error


def _append_rest(url: str, part: Path) -> None:
    """Ask for the bytes that ``part`` lacks, and append them."""
    offset = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # the file's own bytes, not a compressed transfer
    if offset:
        headers["Range"] = f"bytes={offset}-"
    timeouts = (CONNECT_TIMEOUT, READ_TIMEOUT)
    with requests.get(url, headers=headers, stream=True, timeout=timeouts) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is missing; the check that follows decides
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            offset = 0  # the server sends everything again
        rest = int(response.headers.get("Content-Length", 0))
        progress = tqdm(
            total=offset + rest or None,
            initial=offset,
            unit="B",
            unit_scale=True,
            delay=2,
            desc=url.rpartition("/")[2],
        )
        with part.open("r+b" if offset else "wb") as file, progress:
            file.seek(offset)
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
        if part.stat().st_size < offset + rest:
            raise requests.ConnectionError("the connection was cut before the end of the file")


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.HTTPError):
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, requests.exceptions.SSLError):
        return "the certificate could not be verified (a proxy or virus scanner in between?)"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, CUT_OFF):
        return "no connection, or it was cut"
    return str(error)
