"""A loopback server that speaks as the Hugging Face Hub does, for huggingface_hub itself to talk to."""

import hashlib
import http.server
import json
import threading
from typing import NamedTuple

WEIGHTS = bytes(range(256)) * 12 * 1024  # 3 MiB


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Request(NamedTuple):
    method: str
    path: str
    range: str | None
    token: str | None


class Hub(http.server.ThreadingHTTPServer):
    """One repository `me/models`; downloads are redirected to another host name, as to a CDN."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.requests: list[Request] = []
        self.etag = checksum(WEIGHTS)
        self.stall_after = len(WEIGHTS)  # bytes
        self.gate = threading.Event()
        self.cut = False  # break the connection instead of waiting at the gate

    def downloads(self) -> list[Request]:
        return [seen for seen in self.requests if seen.path.startswith("/cdn/")]


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = self.headers
        self.server.requests.append(
            Request(self.command, self.path, headers.get("Range"), headers.get("Authorization"))
        )
        if self.path == "/me/models/resolve/main/sub/tiny.gguf":
            location = f"http://localhost:{self.server.server_port}/cdn/tiny.gguf"
            size = str(len(WEIGHTS))
            etag = f'"{self.server.etag}"'
            self._answer(302, {"Location": location, "X-Linked-Size": size, "X-Linked-Etag": etag})
        elif self.path == "/cdn/tiny.gguf":
            self._send_weights()
        elif self.path.startswith("/api/models/me/models/tree/main"):
            entry = {"type": "file", "oid": "0" * 40, "size": 1, "path": "sub/tiny.gguf"}
            self._answer(200, {"Content-Type": "application/json"}, json.dumps([entry]).encode())
        elif self.path.startswith("/me/gated/"):
            self._answer(403, {"X-Error-Code": "GatedRepo"})
        elif self.path.startswith("/me/models/"):
            self._answer(404, {"X-Error-Code": "EntryNotFound"})
        elif self.path.startswith("/me/broken/"):
            self._answer(500, {})
        else:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": "c" * 40, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send_weights(self) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(WEIGHTS) - start))
        self.end_headers()
        stop = self.server.stall_after
        try:
            self.wfile.write(WEIGHTS[start:stop])
            if stop < len(WEIGHTS):
                self.server.stall_after = len(WEIGHTS)
                if self.server.cut:
                    self.close_connection = True
                    return
                self.server.gate.wait(20)
                self.wfile.write(WEIGHTS[max(start, stop) :])
        except ConnectionError:
            pass  # the client is gone
