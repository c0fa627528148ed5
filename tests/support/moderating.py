"""A moderation server on loopback, in a thread: it flags a word, as OpenAI's endpoint would."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CATEGORIES = ("hate", "hate/threatening", "violence", "illicit")


class Moderator:
    """What it was asked, by which headers; `answer` may be set to what it says instead, or do."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.connections: set[Any] = set()
        self.answer: Callable[[dict[str, Any]], tuple[int, bytes]] = self.results

    def results(self, body: dict[str, Any]) -> tuple[int, bytes]:
        inputs = body["input"]
        if isinstance(inputs, str):
            inputs = [inputs]
        if isinstance(inputs[0], dict):
            inputs = [" ".join(part.get("text") or part["image_url"]["url"] for part in inputs)]
        return 200, json.dumps({"id": "m", "model": "m", "results": [*map(self.result, inputs)]}).encode()

    def result(self, text: str) -> dict[str, Any]:
        score = 0.9 if self.word in text else 0.1
        return {
            "flagged": score > 0.5,
            "categories": dict.fromkeys(CATEGORIES, False) | {"violence": score > 0.5, "illicit": None},
            "category_scores": dict.fromkeys(CATEGORIES, 0.01) | {"violence": score, "illicit": None},
        }


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # who connects while more than so many wait to be let in may be reset
    daemon_threads = True


@contextmanager
def moderating(word: str) -> Iterator[Moderator]:
    """Serve until the block ends."""
    moderator = Moderator(word)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            moderator.connections.add(self.client_address)
            moderator.headers.append({name.lower(): value for name, value in self.headers.items()})
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            moderator.asked.append({"path": self.path, **body})
            status, raw = moderator.answer(body)
            try:
                self.send_response(status)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
            except ConnectionError:  # nobody waits any more
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    moderator.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield moderator
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
