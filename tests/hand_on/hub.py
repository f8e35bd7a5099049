"""A stand-in for the Hub: the part of its protocol that creating a repository and one commit need, over real HTTP."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """Remembers what was asked and committed.

    Args:
        status: of every answer, to be refused.
        private: of the repository that is there.
    """

    def __init__(self, status: int = 200, private: bool = True) -> None:
        self.status, self.private = status, private
        self.asked: list[str] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()

    def answer(self, path: str, body: bytes) -> Any:
        self.asked.append(path)
        if path == "/api/repos/create":
            name = json.loads(body)["name"]
            return {"url": f"https://huggingface.co/me/{name}", "name": f"me/{name}", "id": f"me/{name}"}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if path.endswith("/commit/main"):
            for line in filter(None, body.splitlines()):
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return {
                "commitUrl": "https://huggingface.co/me/student/commit/" + "1" * 40,
                "commitOid": "1" * 40,
                "success": True,
            }
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        return {"id": "me/student", "private": self.private, "sha": "1" * 40, "siblings": []}

    @contextmanager
    def running(self) -> Iterator[str]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                hub.tokens.add(self.headers.get("authorization"))
                if "chunked" in self.headers.get("transfer-encoding", ""):
                    body = b""
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers.get("content-length", 0)))
                said = json.dumps(hub.answer(self.path, body) if hub.status == 200 else {"error": "no"}).encode()
                self.send_response(hub.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()
            thread.join()
