"""Whatever a server, a mirror or a disk does, no wrong file comes into the cache, or stays there.

Only the format of a file is known here, not its hash, as for the weights of GPT-2.
"""

import itertools
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from faulty_server import FAULTS, HTML, LFS_POINTER, FaultyServer
from safetensors.numpy import save

from llms_from_scratch import data
from llms_from_scratch.data import cached_path, fetch, http, resolve
from llms_from_scratch.data.archive import check_zip, read_zip_member
from llms_from_scratch.data.formats import check_format
from llms_from_scratch.data.http import DownloadError
from llms_from_scratch.data.manifest import ASSETS, Asset


def weights(seed: int, rows: int = 300) -> bytes:
    values = np.random.default_rng(seed).random((rows, 100), dtype=np.float32)
    return save({"wte.weight": values})


def entries(seed: int, number: int = 400) -> bytes:
    rng = random.Random(seed)
    return json.dumps([{"output": "x" * rng.randrange(50)} for _ in range(number)]).encode()


FIRST, SECOND, LONGER = weights(1), weights(2), weights(3, rows=400)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LLMS_FROM_SCRATCH_CACHE", str(tmp_path / "cache"))
    for name in ("LLMS_FROM_SCRATCH_MIRROR", "LLMS_FROM_SCRATCH_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http, "READ_TIMEOUT", 0.2)
    monkeypatch.setattr(http, "CHUNK", 1000)  # the last piece before a cut gets lost
    return tmp_path / "cache"


@pytest.fixture
def server():
    with FaultyServer(FIRST) as server:
        yield server


@pytest.fixture
def add_asset(monkeypatch, server):
    def add(file_name: str = "model.safetensors", **changes) -> Asset:
        fields = {"name": "thing", "urls": (f"{server.url}/thing",), "licence": "none"}
        asset = Asset(file_name=file_name, description="a test", **fields | changes)
        monkeypatch.setitem(ASSETS, asset.name, asset)
        return asset

    return add


def got(asset: Asset) -> bytes | None:
    """What fetch gives, or None for a DownloadError; the cache holds the same, or nothing."""
    try:
        path = fetch(asset.name)
    except DownloadError:
        assert not cached_path(asset).exists()
        return None
    assert path == cached_path(asset)
    return path.read_bytes()


def start_afresh(asset: Asset) -> None:
    for path in cached_path(asset).parent.glob("*"):
        path.unlink()


@pytest.mark.parametrize("way", ["urls", "mirror"])
@pytest.mark.parametrize(
    ("file_name", "contents", "changes"),
    [
        ("model.safetensors", (FIRST, SECOND, LONGER), {}),
        ("data.json", (entries(1), entries(2), entries(3)), {"entries": 400}),
    ],
)
def test_no_fault_of_a_server_leaves_a_wrong_file(
    server, add_asset, monkeypatch, way, file_name, contents, changes
):
    """Two calls of fetch: each fault alone and after a cut, the file changed in between or not."""
    asset = add_asset(file_name, **changes)
    if way == "mirror":
        asset = add_asset(file_name, urls=(), **changes)
        monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", server.url)
    tried = wholes = 0
    first, *others = contents
    for fault, before, following in itertools.product(FAULTS, ("", "cut"), (first, *others)):
        if fault == "silent" and (before or way == "mirror"):
            continue  # slow, and no other code
        start_afresh(asset)
        server.content, server.next_contents = first, [following]
        server.faults = [before, fault] if before else [fault]
        for _ in range(2):
            tried += 1
            found = got(asset)
            assert found in (None, *contents), (fault, before)
            wholes += found is not None
    assert tried > 300 and wholes > tried / 2


@pytest.mark.parametrize("seed", range(3))
def test_random_faults_in_a_row_never_mix_two_versions(server, add_asset, seed):
    rng, asset = random.Random(seed), add_asset()
    quick = [fault for fault in FAULTS if fault != "silent"] + [None]
    tried = wholes = 0
    for _ in range(60):
        start_afresh(asset)
        server.content = rng.choice([FIRST, SECOND, LONGER])
        server.next_contents = rng.choices([FIRST, SECOND, LONGER], k=rng.randrange(6))
        server.faults = rng.choices([*quick, "cut", "cut", "if-range ignored"], k=rng.randrange(8))
        for _ in range(3):
            tried += 1
            found = got(asset)
            assert found in (None, FIRST, SECOND, LONGER)
            wholes += found is not None
    assert wholes > tried / 2


def test_a_cut_download_is_resumed_if_the_version_is_still_the_same(server, add_asset):
    asset = add_asset()
    server.faults = ["cut"]
    assert got(asset) == FIRST
    (_, nothing, _), (_, rest, version) = server.log
    assert nothing is None and rest == "bytes=40000-" and version.startswith('"')
    assert sorted(path.name for path in cached_path(asset).parent.glob("[a-z]*")) == [
        "model.safetensors"
    ]


def test_a_later_call_remembers_the_version_of_what_it_continues(server, add_asset, monkeypatch):
    monkeypatch.setattr(http, "TRIES", 1)
    asset = add_asset()
    server.faults, server.next_contents = ["cut", None], [SECOND]
    assert got(asset) is None
    assert got(asset) == SECOND
    (_, rest, version) = server.log[1]
    assert rest == "bytes=40000-" and version.startswith('"')
    assert len(server.log) == 2  # the second answer had everything


def test_what_has_no_version_is_not_continued(server, add_asset):
    asset = add_asset()
    server.faults, server.next_contents = ["cut", "no version"], [SECOND]
    part = cached_path(asset).with_name("model.safetensors.0123.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(SECOND[:5000])
    assert got(asset) == SECOND
    assert server.log[0][1] is None


def test_another_servers_bytes_are_not_continued_without_a_hash(server, add_asset):
    with FaultyServer(SECOND) as other:
        asset = add_asset(urls=(f"{server.url}/thing", f"{other.url}/thing"))
        server.faults = ["cut", "error 503"]
        assert got(asset) == SECOND
        assert other.log[0][1] is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (LFS_POINTER, "a git-lfs pointer .run `git lfs pull`"),
        (HTML, "a web page"),
        (b"\xef\xbb\xbf\n" + HTML, "a web page"),
        (b"", "nothing, 0 bytes"),
        (FIRST[:-1], "another or a damaged file"),
        (FIRST + b"x", "another or a damaged file"),
        (FIRST[:5], "another or a damaged file"),
        (b"\xff" * 100, "another or a damaged file"),
    ],
)
@pytest.mark.parametrize("place", ["mirror folder", "cache"])
def test_a_wrong_file_in_a_mirror_or_in_the_cache_is_refused_and_replaced(
    server, add_asset, monkeypatch, tmp_path, place, content, reason
):
    asset = add_asset()
    target = cached_path(asset)
    wrong = tmp_path / "mirror/thing/model.safetensors" if place != "cache" else target
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(content)
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", str(tmp_path / "mirror"))
    server.faults = ["error 404"]
    with pytest.raises(DownloadError, match=reason if place != "cache" else "404"):
        fetch("thing")
    assert not target.exists()
    assert resolve("thing").source == "download"
    assert target.read_bytes() == FIRST
    if place == "cache":
        assert target.with_name("model.safetensors.damaged").read_bytes() == content


def test_a_damaged_file_is_set_aside_also_when_a_mirror_replaces_it(
    add_asset, monkeypatch, tmp_path
):
    asset = add_asset()
    (tmp_path / "mirror/thing").mkdir(parents=True)
    (tmp_path / "mirror/thing/model.safetensors").write_bytes(FIRST)
    cached_path(asset).parent.mkdir(parents=True)
    cached_path(asset).write_bytes(FIRST[:100])
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", str(tmp_path / "mirror"))
    assert resolve("thing").source == "mirror"
    assert cached_path(asset).with_name("model.safetensors.damaged").read_bytes() == FIRST[:100]


def test_a_file_that_is_there_is_checked_before_a_download_takes_it_for_its_own(server, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_bytes(LFS_POINTER)
    assert http.download([server.url], target, check=lambda path: None) == target
    assert target.read_bytes() == FIRST


@pytest.mark.parametrize(
    ("file_name", "content", "fits"),
    [
        ("a.json", b'{"a": [1]}', True),
        ("a.json", b"\xef\xbb\xbf[]", True),
        ("a.json", b'{"a": [1', False),
        ("a.json", b'"an error"', False),
        ("a.json", b"null", False),
        ("a.json", b'["caf\xe9"]', False),
        ("a.json", b"[" * 100_000, False),
        ("model.ckpt.index", b"x" * 10 + bytes.fromhex("57fb808b247547db"), True),
        ("model.ckpt.index", b"x" * 10 + bytes.fromhex("57fb808b247547"), False),
        ("model.ckpt.index", b"x", False),
        ("model.ckpt.meta", b"\x0a\x03abc\x12\x01d", True),
        ("model.ckpt.meta", b"\x0a\x03abc\x12\x02d", False),
        ("model.ckpt.meta", b"\x0a\x03abc\x12", False),
        ("model.ckpt.meta", b'{"message": "rate limit"}', False),
        ("a.zip", b"PK", False),
        ("a.txt", b"any text", True),
        ("a.txt", HTML, False),
        ("a.html", HTML, True),
    ],
)
def test_the_format_goes_by_the_name(tmp_path, file_name, content, fits):
    path = tmp_path / "temporary"
    path.write_bytes(content)
    if fits:
        return check_format(path, file_name)
    with pytest.raises(ValueError, match=f"instead of {file_name}"):
        check_format(path, file_name)


def test_a_list_of_json_has_the_entries_that_the_manifest_counts(server, add_asset):
    asset = add_asset("data.json", entries=400)
    server.faults, server.content = ["json error"], entries(1)
    assert [got(asset), got(asset)] == [None, entries(1)]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_each_flipped_bit_of_a_zip_is_named_or_harmless(tmp_path, compression):
    text = ("ham\tan ordinary message\n" * 40).encode()
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("member", text)
    whole, refused = path.read_bytes(), 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert read_zip_member(path, "member") == text
        except ValueError:
            refused += 1
    assert refused > len(whole) * 4


def test_damaged_archives_in_the_cache_are_set_aside_whichever_bit_is_wrong(monkeypatch):
    """The asset of chapter 6 itself: fetched again if it can be, replaced by the sample if not."""
    asset = ASSETS["sms-spam"]
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    whole = (data.SAMPLES / asset.sample).read_bytes()
    target, rng = cached_path(asset), random.Random(0)
    target.parent.mkdir(parents=True)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        target.write_bytes(damaged)
        with pytest.warns(data.SampleDataWarning):
            assert resolve("sms-spam").source == "sample"
        assert not target.exists()
        assert target.with_name(target.name + ".damaged").read_bytes() == damaged


def test_a_missing_archive_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        check_zip(tmp_path / "no.zip")


def test_offline_means_no_connection_to_a_mirror_either(server, add_asset, monkeypatch):
    add_asset()
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", server.url)
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    with pytest.raises(DownloadError, match="nothing was downloaded, also not from the mirror"):
        fetch("thing")
    assert server.log == []
