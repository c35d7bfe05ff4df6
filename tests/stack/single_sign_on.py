"""A single sign-on for the tests: answers Traefik's forwardAuth as Authelia does, and echoes the headers of requests.

usage: single_sign_on.py PORT. Admits Alice with her password (Basic) or her cookie.
The rules are those of Authelia 4.39, as measured on a real installation.
"""

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ALICE = "Basic " + base64.b64encode(b"alice:alice-secret-password").decode()
LOGIN = "https://auth.example.com/?rd="


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/authz/forward-auth":
            self._judge()
        elif path == "/rude":
            # As some other products do: redirect every request to the login page.
            self._answer(302, Location=LOGIN)
        else:
            # An upstream that is always ready and returns the headers that it received.
            self._answer(200, body=json.dumps(dict(self.headers.items())))

    do_POST = do_PUT = do_HEAD = do_OPTIONS = do_GET  # noqa: N815 - the server asks for these names

    def _judge(self) -> None:
        given, accept = self.headers.get("Authorization", ""), self.headers.get("Accept", "")
        if given == ALICE or "session=alice" in self.headers.get("Cookie", ""):
            self._answer(200, **{"Remote-User": "alice"})
        elif given.lower().startswith("basic "):
            self._answer(401, **{"WWW-Authenticate": 'Basic realm="Authorization Required"'})
        elif self.headers.get("X-Requested-With") == "XMLHttpRequest" or not (
            "text/html" in accept or accept.startswith("*/*")
        ):
            self._answer(401, Location=LOGIN)
        else:
            self._answer(302 if self.headers.get("X-Forwarded-Method") in ("GET", "HEAD") else 303, Location=LOGIN)

    def _answer(self, status: int, body: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
