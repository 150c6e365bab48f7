"""Downloads: the final path is absent or whole, whatever the server, the network or the user does.

All servers run on loopback, inside this process or in a child of it.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import os
import random
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llms_from_scratch import data
from llms_from_scratch.app.cli import main as cli
from llms_from_scratch.data import archive, fetch, load_text, resolve
from llms_from_scratch.data import http as http_module
from llms_from_scratch.data.files import is_whole
from llms_from_scratch.data.http import DownloadError
from llms_from_scratch.data.manifest import ASSETS, Asset

CONTENT = random.Random(0).randbytes(1_000_000)
MIRROR = os.environ.get("LLMS_FROM_SCRATCH_MIRROR", "")
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT in the ways in which real servers go wrong, chosen by the path."""

    def do_GET(self):
        server, start = self.server, 0
        server.log.append((self.path, self.headers.get("Range")))
        kind = self.path.strip("/").split("/")[0]
        if kind == "missing":
            return self.send_error(404)
        if kind == "silent":
            return time.sleep(3)
        body = {"html": HTML, "wrong": CONTENT[::-1]}.get(kind, CONTENT)
        if self.headers.get("Range") and kind != "norange":
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = kind == "cut-once" and len(server.log) == 1
        cut = cut or kind == "cut-always" or (kind == "norange" and len(server.log) == 1)
        end = start + int(0.3 * len(CONTENT)) if cut else len(body)
        for position in range(start, min(end, len(body)), 1 << 14):
            if kind == "slow":
                time.sleep(0.02)
            with contextlib.suppress(OSError):
                self.wfile.write(body[position : min(position + (1 << 14), end)])
                server.sent += min(position + (1 << 14), end) - position
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.log, httpd.sent = [], 0
    httpd.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LLMS_FROM_SCRATCH_CACHE", str(tmp_path / "cache"))
    for name in ("MIRROR", "OFFLINE"):
        monkeypatch.delenv(f"LLMS_FROM_SCRATCH_{name}", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def add_asset(monkeypatch):
    """Put an asset with these URLs into the manifest."""

    def add(*urls, **changes):
        fields = {
            "name": "thing",
            "file_name": "thing.bin",
            "urls": urls,
            "licence": "none",
            "description": "a test",
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "size": len(CONTENT),
        }
        asset = Asset(**(fields | changes))
        monkeypatch.setitem(ASSETS, asset.name, asset)
        return asset

    return add


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_download_is_stored_and_not_asked_for_again(server, cache, add_asset):
    add_asset(f"{server.url}/good")
    assert resolve("thing").source == "download"
    assert resolve("thing").source == "cache"
    assert fetch("thing").read_bytes() == CONTENT
    assert len(server.log) == 1
    assert files_in(cache) == ["thing.bin"]


def test_a_download_cut_at_30_percent_is_resumed_with_the_rest_only(server, cache, add_asset):
    add_asset(f"{server.url}/cut-once")
    assert fetch("thing").read_bytes() == CONTENT
    assert_resumed(server)
    assert server.sent < len(CONTENT) + http_module.CHUNK


def assert_resumed(server):
    """The last request asked for what was missing: the cut came at byte 300,000."""
    start = int(server.log[-1][1].removeprefix("bytes=").rstrip("-"))
    assert 300_000 - http_module.CHUNK < start <= 300_000


def test_a_later_call_continues_what_an_earlier_one_began(server, cache, add_asset, monkeypatch):
    monkeypatch.setattr(http_module, "TRIES", 1)
    add_asset(f"{server.url}/cut-always")
    with pytest.raises(DownloadError, match="no connection, or it was cut"):
        fetch("thing")
    assert not (cache / "thing/thing.bin").exists()
    add_asset(f"{server.url}/good")
    assert fetch("thing").read_bytes() == CONTENT
    assert server.log[-1][0] == "/good"
    assert_resumed(server)
    assert files_in(cache) == ["thing.bin"]


def test_a_server_that_ignores_range_is_read_from_the_start(server, cache, add_asset):
    add_asset(f"{server.url}/norange")
    assert fetch("thing").read_bytes() == CONTENT
    assert len(server.log) == 2


def test_the_backup_is_used_and_completes_what_the_first_url_began(
    server, cache, add_asset, monkeypatch
):
    monkeypatch.setattr(http_module, "TRIES", 1)
    add_asset(f"{server.url}/cut-always", f"{server.url}/missing", f"{server.url}/good")
    assert fetch("thing").read_bytes() == CONTENT
    assert server.log[-1][0] == "/good"
    assert_resumed(server)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("wrong", "got another or a damaged file, 1000000 bytes, instead of thing.bin"),
        ("html", r"got a web page \(from a proxy or a login form\?\)"),
        ("missing", "HTTP status 404"),
    ],
)
def test_a_wrong_answer_leaves_nothing_behind_and_is_explained(
    server, cache, add_asset, kind, reason
):
    add_asset(f"{server.url}/{kind}")
    with pytest.raises(DownloadError, match=f"{kind}: {reason}") as error:
        fetch("thing")
    assert "put the file thing.bin at" in str(error.value)
    assert "LLMS_FROM_SCRATCH_MIRROR" in str(error.value)
    assert files_in(cache) == []


def test_leftovers_that_do_not_fit_are_dropped_and_the_file_is_read_afresh(
    server, cache, add_asset
):
    add_asset(f"{server.url}/good")
    (cache / "thing").mkdir(parents=True)
    (cache / "thing/thing.bin.0123.part").write_bytes(b"x" * 500)
    (cache / "thing/thing.bin.4567.part").write_bytes(b"y" * 200)
    assert fetch("thing").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.log] == ["bytes=500-", None]
    assert files_in(cache) == ["thing.bin"]


def test_time_to_fail_is_bounded_for_a_server_that_says_nothing(
    server, cache, add_asset, monkeypatch
):
    assert http_module.CONNECT_TIMEOUT + http_module.READ_TIMEOUT <= 30
    monkeypatch.setattr(http_module, "READ_TIMEOUT", 0.3)
    add_asset(f"{server.url}/silent")
    started = time.perf_counter()
    with pytest.raises(DownloadError, match="no answer in time"):
        fetch("thing")
    assert time.perf_counter() - started < 2


def test_a_damaged_file_in_the_cache_is_replaced(server, cache, add_asset):
    add_asset(f"{server.url}/good")
    path = fetch("thing")
    path.write_bytes(CONTENT[:-1] + b"!")
    assert resolve("thing").source == "download"
    assert path.read_bytes() == CONTENT


FETCH_IN_A_CHILD = """
import hashlib, sys
from llms_from_scratch.data import fetch
from llms_from_scratch.data.manifest import ASSETS, Asset
ASSETS["thing"] = Asset("thing", "thing.bin", (sys.argv[1],), "none", "a test", sha256=sys.argv[2])
print(hashlib.sha256(fetch("thing").read_bytes()).hexdigest())
"""


def start_child(server):
    wanted = hashlib.sha256(CONTENT).hexdigest()
    return subprocess.Popen(
        [sys.executable, "-c", FETCH_IN_A_CHILD, f"{server.url}/slow", wanted],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_eight_processes_at_once_get_the_file_from_one_download(server, cache):
    children = [start_child(server) for _ in range(8)]
    outputs = [child.communicate(timeout=120)[0].strip() for child in children]
    assert outputs == [hashlib.sha256(CONTENT).hexdigest()] * 8
    assert server.sent == len(CONTENT)
    assert files_in(cache) == ["thing.bin"]


def test_after_kill_9_at_20_random_moments_the_file_is_absent_or_whole(server, cache):
    final, rng = cache / "thing/thing.bin", random.Random(1)
    kills = wholes = 0
    while kills < 20:
        child = start_child(server)
        deadline = time.perf_counter() + 60
        requests = len(server.log)
        while len(server.log) == requests and child.poll() is None:
            assert time.perf_counter() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5))
        child.kill()
        child.communicate()
        kills += 1
        if final.exists():
            wholes += 1
            assert final.read_bytes() == CONTENT
            final.unlink()
    assert start_child(server).communicate(timeout=60)[0].strip()
    assert final.read_bytes() == CONTENT
    assert files_in(cache) == ["thing.bin"]  # the next successful call tidies up
    assert wholes < 20  # else the kills came too late to prove anything


def test_mirror_folder_is_used_without_any_connection(
    server, cache, add_asset, monkeypatch, tmp_path
):
    (tmp_path / "mirror/thing").mkdir(parents=True)
    (tmp_path / "mirror/thing/thing.bin").write_bytes(CONTENT)
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", str(tmp_path / "mirror"))
    add_asset(f"{server.url}/good")
    assert resolve("thing").source == "mirror"
    assert fetch("thing").read_bytes() == CONTENT
    assert server.log == []


def test_a_wrong_file_on_the_mirror_is_not_used(server, cache, add_asset, monkeypatch, tmp_path):
    (tmp_path / "mirror/thing").mkdir(parents=True)
    (tmp_path / "mirror/thing/thing.bin").write_bytes(b"old version")
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", str(tmp_path / "mirror"))
    add_asset(f"{server.url}/good")
    assert resolve("thing").source == "download"


def test_mirror_url_comes_before_the_manifests_urls(server, cache, add_asset, monkeypatch):
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", f"{server.url}/mirror/")
    add_asset(f"{server.url}/good")
    fetch("thing")
    assert [path for path, _ in server.log] == ["/mirror/thing/thing.bin"]


def test_hub_urls_honour_hf_endpoint(server, cache, add_asset, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    add_asset("https://huggingface.co/some/model/resolve/main/thing.bin")
    fetch("thing")
    assert [path for path, _ in server.log] == ["/some/model/resolve/main/thing.bin"]


def test_offline_switch_opens_no_connection(server, cache, add_asset, monkeypatch):
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    add_asset(f"{server.url}/good")
    with pytest.raises(DownloadError, match="LLMS_FROM_SCRATCH_OFFLINE is set"):
        fetch("thing")
    assert server.log == []


def test_a_text_falls_back_to_its_sample_and_says_so(cache, monkeypatch):
    monkeypatch.setenv("LLMS_FROM_SCRATCH_OFFLINE", "1")
    with pytest.warns(data.SampleDataWarning, match="'short-story.txt' takes the place of 'the-ve"):
        found = resolve("the-verdict")
    assert found.source == "sample"
    assert 20_000 <= len(found.path.read_text(encoding="utf-8")) <= 22_000
    with pytest.raises(DownloadError):
        fetch("the-verdict", allow_sample=False)


def test_the_bundled_story_is_about_as_varied_as_the_books():
    from llms_from_scratch.ch02 import split_into_tokens

    text = (data.SAMPLES / "short-story.txt").read_text(encoding="utf-8")
    tokens = split_into_tokens(text)
    assert 1_000 <= len(set(tokens)) <= 1_300  # "The Verdict": 1,130
    assert 4_300 <= len(tokens) <= 5_000  # "The Verdict": 4,690
    assert text.isascii()


def test_unknown_assets_are_refused_with_the_known_names():
    with pytest.raises(ValueError, match="unknown asset 'the-verdikt'; known are: the-verdict"):
        fetch("the-verdikt")


def test_an_archive_is_known_by_the_hash_of_its_member(
    server, cache, add_asset, monkeypatch, tmp_path
):
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror/thing").mkdir(parents=True)
    asset = add_asset(
        sha256=None,
        size=None,
        member="inner.txt",
        member_sha256=hashlib.sha256(b"the right text").hexdigest(),
    )
    for text, fits in (("the right text", True), ("another text", False)):
        with zipfile.ZipFile(tmp_path / "mirror/thing/thing.bin", "w") as file:
            file.writestr("inner.txt", text)
        if fits:
            data.check_file(asset, fetch("thing"))
        else:
            data.cached_path(asset).unlink()
            with pytest.raises(DownloadError, match="another or a damaged file"):
                fetch("thing")


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/x", "C:\\x", "C:x", "..\\x", "a/..\\..\\x", "\\\\host\\s\\x"],
)
def test_archive_members_that_leave_the_folder_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("good.txt", "good")
        file.writestr(name, "bad")
    with pytest.raises(ValueError, match="would leave the target folder: refused"):
        archive.extract_zip(tmp_path / "bad.zip", tmp_path / "deep/er/out")
    assert files_in(tmp_path) == ["bad.zip"]


def test_archives_are_unpacked_and_damaged_ones_named(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("folder/a.txt", "A")
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    (path,) = archive.extract_zip(tmp_path / "a.zip", tmp_path / "out")
    assert path.read_text(encoding="utf-8") == "A"
    (tmp_path / "b.zip").write_bytes(buffer.getvalue()[:-20])
    with pytest.raises(ValueError, match="not a whole zip archive"):
        archive.extract_zip(tmp_path / "b.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"caf\xe9", r"is not UTF-8 text \(byte 3"),
        (b"GIF89a\x00\x01", "contains NUL characters"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, content, message):
    (tmp_path / "file.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_text(tmp_path / "file.txt")


def test_windows_line_ends_and_byte_order_marks_disappear(tmp_path):
    (tmp_path / "file.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert load_text(tmp_path / "file.txt") == "one\ntwo\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_with_a_byte_order_mark_is_read_as_what_it_is(tmp_path_factory, encoding, text):
    text = f"é汉{text}"
    path = tmp_path_factory.mktemp("marks") / "file.txt"
    path.write_bytes(text.encode(encoding))
    assert load_text(path) == text.replace("\r\n", "\n").replace("\r", "\n")


def test_a_folder_and_an_asset_that_is_no_text_are_named_as_such(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder: give one of its files"):
        load_text(tmp_path)
    with pytest.raises(ValueError, match="sms-spam is SMS Spam Collection: .*: no text to read"):
        load_text("sms-spam")


@pytest.fixture
def read_only_cache(cache, tmp_path, monkeypatch):
    """A cache folder that nobody can make, root neither: a file is in its place."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMS_FROM_SCRATCH_CACHE", str(tmp_path / "file/cache"))


def test_without_a_place_to_write_the_sample_is_used_and_the_way_out_named(
    server, read_only_cache, monkeypatch
):
    asset = dataclasses.replace(ASSETS["the-verdict"], urls=(f"{server.url}/good",))
    monkeypatch.setitem(ASSETS, "the-verdict", asset)
    with pytest.warns(data.SampleDataWarning, match="set LLMS_FROM_SCRATCH_CACHE to a folder"):
        assert resolve("the-verdict").source == "sample"
    with pytest.raises(DownloadError, match="cannot be written .Not a directory., so nothing was"):
        fetch("the-verdict", allow_sample=False)
    assert server.log == []


def test_without_a_place_to_write_a_mirror_is_used_where_it_lies(
    read_only_cache, add_asset, monkeypatch, tmp_path
):
    source = tmp_path / "mirror/thing/thing.bin"
    source.parent.mkdir(parents=True)
    source.write_bytes(CONTENT)
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", str(tmp_path / "mirror"))
    add_asset()
    assert fetch("thing") == source
    source.write_bytes(b"something else")
    with pytest.raises(DownloadError, match="LLMS_FROM_SCRATCH_MIRROR: got another or a damaged"):
        fetch("thing")


def test_a_cache_that_may_not_be_read_counts_as_empty(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert not is_whole(tmp_path / "file", check=lambda path: None)


def test_a_text_that_is_nowhere_is_reported():
    with pytest.raises(FileNotFoundError, match=r"neither a file nor a known text \(the-verdict"):
        load_text("no-such-file.txt")


def test_data_command_lists_every_asset(cache, capsys):
    assert cli(["data"]) == 0
    printed = capsys.readouterr().out
    for asset in ASSETS.values():
        origin = asset.urls[0] if asset.urls else f"package {asset.packages[0].project} "
        assert asset.name in printed and origin in printed
    assert str(cache) in printed


def test_data_command_downloads_only_what_is_named(cache, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        cli(["data", "--fetch"])
    assert "needs a name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli(["data", "sms-sapm"])
    assert (
        "no asset's name begins with 'sms-sapm'; there are: the-verdict" in capsys.readouterr().err
    )
    fetched = []
    monkeypatch.setattr(
        "llms_from_scratch.app.cli.fetch", lambda name, **options: fetched.append(name)
    )
    assert cli(["data", "gpt2-vocab", "--fetch"]) == 0
    assert fetched == ["gpt2-vocab/vocab.bpe", "gpt2-vocab/encoder.json"]


def test_every_asset_can_be_checked():
    for asset in ASSETS.values():
        is_weights = asset.name.startswith(("gpt2", "openai-"))  # they say their own length
        is_pinned = asset.sha256 or asset.member_sha256 or asset.size or asset.last_words
        assert is_pinned or is_weights or asset.name == "alpaca-52k", asset.name  # entries are read
        assert asset.urls or asset.packages
        assert all(url.startswith("https://") for url in asset.urls)
        assert not asset.packages or (asset.sha256 and asset.size)
        assert asset.sample is None or (data.SAMPLES / asset.sample).is_file()


def test_a_novel_is_known_by_its_title_and_a_cut_or_another_one_is_refused(tmp_path):
    asset, path = ASSETS["middlemarch"], tmp_path / "middlemarch.txt"
    end = "\n*** END OF THE PROJECT GUTENBERG EBOOK {} ***\nLicence\n"
    path.write_text("Prelude" + end.format("MIDDLEMARCH"), encoding="utf-8")
    data.check_file(asset, path)
    for content in ("Prelude", "Chapter 1" + end.format("EMMA")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="another or a damaged file"):
            data.check_file(asset, path)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["the-verdict", "gpt2-vocab/vocab.bpe", "gpt2-vocab/encoder.json"])
def test_real_files_on_the_mirror_pass_the_manifests_check(name, cache, monkeypatch):
    monkeypatch.setenv("LLMS_FROM_SCRATCH_MIRROR", MIRROR)
    assert resolve(name, allow_sample=False).source == "mirror"
