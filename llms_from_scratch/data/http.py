"""One file over HTTP: resumed after a cut, checked, and moved into place only when it is whole."""

import json
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock
from tqdm import tqdm

from llms_from_scratch.data.files import flush_to_disk, is_whole, set_aside_if_damaged
from llms_from_scratch.data.formats import check_format

HUB = "https://huggingface.co"
CONNECT_TIMEOUT = 10.0  # seconds until a server must answer
READ_TIMEOUT = 15.0  # seconds without a single byte
TRIES = 4  # a URL is given up after this many tries, or at once if a try brings nothing new
CHUNK = 1 << 16
VERSION_HEADERS = ("ETag", "Last-Modified")
CUT_OFF = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class DownloadError(RuntimeError):
    """No source gave the wanted file; the message says what each of them did."""


@dataclass(frozen=True)
class Part:
    """An unfinished download, and a note beside it that says which version of which file it is."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def version_at(self, url: str) -> str | None:
        """The ETag or date under which the bytes came from this URL, if they did."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return note["version"] if note["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, url: str, version: str | None) -> None:
        """Empty the part, and note what will be written into it."""
        self.path.write_bytes(b"")
        note = json.dumps({"url": url, "version": version})
        self.note.write_text(note, encoding="utf-8")

    def remove(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)


def download(
    urls: list[str], target: Path, check: Callable[[Path], object], is_pinned: bool = False
) -> Path:
    """Download the first of ``urls`` that works to ``target``, and return it.

    ``check`` gets the path of the complete download and raises ``ValueError`` if it is not the
    wanted file; ``check_format`` comes first. ``target`` then either does not exist or passed both,
    whatever happens: bytes go to a file with a unique name that ends in ``.part``, which a later
    call takes over and continues. A file that is there already is checked too, and set aside as
    ``.damaged`` if it fails. Processes that want the same file wait for the one that downloads it.

    A part is continued only with the rest of the same version: the server must still have the ETag
    or the date that it had. ``is_pinned`` says that ``check`` knows the content by its hash; then a
    part is continued without such a mark too, and from another server.

    Raises ``DownloadError`` if all URLs fail. A server that does not answer costs at most
    ``CONNECT_TIMEOUT`` plus ``READ_TIMEOUT`` seconds.
    """

    def check_all(path: Path) -> None:
        check_format(path, target.name)
        check(path)

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if is_whole(target, check_all):
            return target  # another process was faster
        set_aside_if_damaged(target, check_all)
        part = _adopt_part(target)
        failures = []
        for url in urls:
            try:
                _download_and_check(url, part, check_all, is_pinned)
                flush_to_disk(part.path)
                os.replace(part.path, target)
                part.remove()
                return target
            except requests.RequestException as error:
                failures.append(f"{url}: {_reason(error)}")  # the part stays for the next try
            except ValueError as error:
                failures.append(f"{url}: {error}")
    raise DownloadError("\n".join(failures))


def _download_and_check(url: str, part: Part, check: Callable, is_pinned: bool) -> None:
    """Complete ``part``; if what an earlier call left of it does not fit, start over once."""
    for is_fresh in (not part.path.exists(), True):
        _download_with_retries(url, part, is_pinned)
        try:
            return check(part.path)
        except ValueError:
            part.remove()  # the wrong file: of no use to anybody
            if is_fresh:
                raise


def _adopt_part(target: Path) -> Part:
    """A part file that belongs to this call alone, begun by an earlier call if there was one."""
    part = Part(target.with_name(f"{target.name}.{uuid.uuid4().hex}.part"))
    leftovers = [Part(path) for path in target.parent.glob(f"{target.name}.*.part")]
    leftovers.sort(key=lambda leftover: leftover.size)
    if leftovers:
        largest = leftovers.pop()
        os.replace(largest.path, part.path)
        if largest.note.is_file():
            os.replace(largest.note, part.note)
    for leftover in leftovers:
        leftover.remove()
    for stray in target.parent.glob(f"{target.name}.*.part.json"):
        if stray != part.note:
            stray.unlink(missing_ok=True)
    return part


def _download_with_retries(url: str, part: Part, is_pinned: bool) -> None:
    for attempt in range(1, TRIES + 1):
        before = part.size
        try:
            return _append_rest(url, part, is_pinned)
        except CUT_OFF as error:
            if attempt == TRIES or part.size <= before:
                raise error


def _append_rest(url: str, part: Part, is_pinned: bool) -> None:
    """Ask for the bytes that ``part`` lacks and append them, or get everything anew."""
    offset, version = part.size, part.version_at(url)
    if not version and not is_pinned:
        offset = 0  # nobody could tell whether the rest belongs to it
    # The file's own bytes, not a compressed transfer
    headers = {"Accept-Encoding": "identity", **_authorization(url)}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if version:
            headers["If-Range"] = version
    timeouts = (CONNECT_TIMEOUT, READ_TIMEOUT)
    with requests.get(url, headers=headers, stream=True, timeout=timeouts) as response:
        status = response.status_code
        if is_pinned and offset and status == requests.codes.requested_range_not_satisfiable:
            return  # nothing is missing; the check that follows decides
        if status == requests.codes.ok:
            part.begin(url, _version_of(response))  # everything comes, perhaps of another version
            return _append_body(response, part, url)
        if offset and status == requests.codes.partial_content:
            if _is_rest(response, offset, version, is_pinned):
                return _append_body(response, part, url)
        elif not offset or status != requests.codes.requested_range_not_satisfiable:
            raise requests.HTTPError(response=response)
    part.remove()
    _append_rest(url, part, is_pinned)


def is_offline() -> bool:
    """Whether ``LLMS_FROM_SCRATCH_OFFLINE`` forbids all connections."""
    return os.environ.get("LLMS_FROM_SCRATCH_OFFLINE", "0") not in ("", "0")


def hub_url() -> str:
    """The Hugging Face hub, or the mirror in its own variable ``HF_ENDPOINT``."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB


def _authorization(url: str) -> dict[str, str]:
    """The reader's token for gated models, if there is one, for the hub and nobody else."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    is_hub = any(url.startswith(f"{place}/") for place in (HUB, hub_url()))
    return {"Authorization": f"Bearer {token}"} if token and is_hub else {}


def _is_rest(
    response: requests.Response, offset: int, version: str | None, is_pinned: bool
) -> bool:
    """Whether the server sends what was asked for: some ignore If-Range, or even Range.

    RFC 9110 demands that a partial answer names its place and the version once more.
    """
    place = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if (place and int(place[1]) != offset) or (not place and not is_pinned):
        return False
    return not version or version in (response.headers.get(name) for name in VERSION_HEADERS)


def _version_of(response: requests.Response) -> str | None:
    """What If-Range can compare: a strong ETag, else the date of the last change."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None  # bytes that are unpacked on arrival cannot be counted in a later request
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _append_body(response: requests.Response, part: Part, url: str) -> None:
    offset, length = part.size, response.headers.get("Content-Length", "")
    end = offset + int(length) if length.isdecimal() else 0
    progress = tqdm(
        total=end or None,
        initial=offset,
        unit="B",
        unit_scale=True,
        delay=2,
        desc=url.rpartition("/")[2],
    )
    with part.path.open("ab") as file, progress:
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            progress.update(len(chunk))
    if part.size < end:
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
