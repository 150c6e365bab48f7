"""Written files: whole or not at all, readable as the umask says, and errors that name them."""

import errno
import os
import stat
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llms_from_scratch.data.files import atomic_write


def write(path, content: bytes = b"new") -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_tensors(path) -> None:
    with atomic_write(path) as temporary:
        save_file({"x": torch.zeros(3)}, temporary)


def write_pickle(path) -> None:
    with atomic_write(path) as temporary:
        torch.save({"x": torch.zeros(3)}, temporary)


WRITERS = [write, write_tensors, write_pickle]


@pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
@settings(deadline=None, max_examples=20)
@given(umask=st.integers(0, 0o77), writer=st.sampled_from(WRITERS))
def test_any_written_file_has_the_mode_that_the_umask_allows(tmp_path_factory, umask, writer):
    path = tmp_path_factory.mktemp("modes") / "file"
    before = os.umask(umask)
    try:
        writer(path)
        writer(path)  # also in place of an old one
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        ("gone/file.bin", FileNotFoundError, "its folder does not exist"),
        ("folder", IsADirectoryError, "is a folder, but a file is to be written"),
        ("file/below.bin", NotADirectoryError, "Not a directory"),
    ],
)
def test_an_error_names_the_path_that_was_asked_for(tmp_path, writer, place, kind, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(kind, match=message) as error:
        writer(tmp_path / place)
    assert error.value.filename == str(tmp_path / place)
    assert ".tmp" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("place", [".", "", "/"])
def test_a_path_without_a_name_is_refused(place):
    with pytest.raises(IsADirectoryError, match="a file is to be written"):
        write(place)


FILL = """
import resource, sys, torch
from safetensors.torch import save_file
from pathlib import Path
from llms_from_scratch.data.files import atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic_write(sys.argv[1]) as temporary:
        if sys.argv[2] == "bytes":
            temporary.write_bytes(bytes(100_000))
        elif sys.argv[2] == "safetensors":
            save_file({"x": torch.zeros(100_000)}, temporary)
        else:
            torch.save(torch.zeros(100_000), temporary)
except OSError as error:
    print(error.filename, "|", error)
"""


@pytest.mark.skipif(os.name != "posix", reason="the limit is one of POSIX")
@pytest.mark.parametrize("kind", ["bytes", "pickle", "safetensors"])
def test_where_no_more_fits_the_old_file_stays_and_the_error_names_it(tmp_path, kind):
    path = tmp_path / "kept.bin"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FILL, path, kind], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{path} |") and ".tmp" not in done.stdout
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@given(content=st.binary(max_size=50), fails=st.booleans())
def test_after_any_block_the_file_is_the_old_one_or_the_new_one(tmp_path_factory, content, fails):
    path = tmp_path_factory.mktemp("blocks") / "file"
    path.write_bytes(b"old")
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
            if fails:
                raise ValueError("no")
    except ValueError:
        pass
    assert path.read_bytes() == (b"old" if fails else content)
    assert list(path.parent.iterdir()) == [path]


def test_errors_about_other_files_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError) as error, atomic_write(tmp_path / "file"):
        (tmp_path / "source").read_bytes()
    assert error.value.filename == str(tmp_path / "source")
    with pytest.raises(OSError, match="reset") as error, atomic_write(tmp_path / "file"):
        raise OSError(errno.ECONNRESET, "reset")
    assert error.value.filename is None
