"""A file server on loopback that goes wrong in the ways of real ones, for tests of downloads.

    with FaultyServer(content) as server:
        server.faults = ["cut", "error 503"]  # of the first requests, in this order; then none

It answers Range and If-Range as RFC 9110 says, and keeps all that was asked for in ``log``.
"""

import contextlib
import hashlib
import http.server
import threading
import time

HTML = b"<!DOCTYPE html>\n<html><body>Please log in</body></html>"
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707\nsize 548105171\n"
)
FAULTS = (
    "cut",  # after a third of the body, with the right Content-Length
    "cut without length",  # the same, so that nothing tells that it was cut
    "cut at once",  # before the first byte of the body
    "trickle",  # all of it, in many small pieces
    "trickle and cut",
    "silent",  # headers, then nothing for longer than a client waits
    "length too small",
    "length too large",
    "length no number",
    "empty",
    "no content",  # status 204
    "html",
    "lfs pointer",
    "json error",  # status 200, {"message": "rate limit"}
    "redirect loop",
    "redirect to html",
    "other range",  # a partial answer that begins elsewhere
    "range unasked",  # a partial answer to a request for everything
    "range ignored",  # everything, whatever was asked for
    "if-range ignored",  # the rest of whatever version there is
    "no version",  # neither ETag nor date
    "gzip",  # compressed, although the client asked for the file's own bytes
    *(f"error {status}" for status in (403, 404, 416, 429, 500, 502, 503, 504)),
)


class FaultyServer(http.server.ThreadingHTTPServer):
    """Serves ``content`` at every path; assign to it to have another version from then on."""

    daemon_threads = True

    def __init__(self, content: bytes, patience: float = 0.5):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.patience = patience  # seconds of silence
        self.faults: list[str | None] = []
        self.next_contents: list[bytes] = []  # each replaces ``content`` after one more request
        self.log: list[tuple[str, str | None, str | None]] = []  # path, Range, If-Range
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # clients hang up, as they should


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.log.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        fault = server.faults.pop(0) if server.faults else None
        content = server.content
        if server.next_contents:
            server.content = server.next_contents.pop(0)
        with contextlib.suppress(OSError):
            self.answer(fault, content)
        self.close_connection = True

    def answer(self, fault: str | None, content: bytes) -> None:
        if self.path.startswith("/page"):
            fault = "html"
        if fault in ("redirect loop", "redirect to html"):
            place = self.path if fault == "redirect loop" else "/page"
            return self.send_head(302, {"Location": place})
        if fault and fault.startswith("error"):
            status = int(fault.split()[1])
            return self.send_body({}, b'{"error": "no"}', status)
        other = {"html": HTML, "lfs pointer": LFS_POINTER, "empty": b"", "no content": b""}
        other["json error"] = b'{"message": "API rate limit exceeded"}'
        if fault in other:
            return self.send_body({}, other[fault], 204 if fault == "no content" else 200)
        self.send_file(fault, content)

    def send_file(self, fault: str | None, content: bytes) -> None:
        etag = f'"{hashlib.sha256(content).hexdigest()[:12]}"'
        headers = {} if fault == "no version" else {"ETag": etag}
        asked, version = self.headers.get("Range"), self.headers.get("If-Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if fault == "range ignored" or (
            version not in (None, etag) and fault != "if-range ignored"
        ):
            start = 0
        if start and start >= len(content):
            return self.send_body({"Content-Range": f"bytes */{len(content)}"}, b"", 416)
        if (fault == "other range" and start) or fault == "range unasked":
            start = start // 2 or len(content) // 2
        status = 206 if start else 200
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if fault == "gzip":
            import gzip

            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        self.send_body(headers, body, status, fault)

    def send_body(self, headers: dict, body: bytes, status: int, fault: str | None = None) -> None:
        length = {"length too small": len(body) // 2, "length too large": len(body) + 100}
        length["length no number"] = "many"
        if fault != "cut without length":
            headers["Content-Length"] = str(length.get(fault, len(body)))
        self.send_head(status, headers)
        end = {"cut at once": 0, "silent": 0}.get(fault, len(body))
        if fault in ("cut", "cut without length", "trickle and cut"):
            end = len(body) // 3
        step = max(1, end // 20) if fault and fault.startswith("trickle") else max(1, end)
        for position in range(0, end, step):
            self.wfile.write(body[position : min(position + step, end)])
            self.wfile.flush()
            if step < end:
                time.sleep(0.002)
        if fault == "silent":
            time.sleep(self.server.patience)

    def send_head(self, status: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args):
        pass
