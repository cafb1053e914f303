"""A page that counts its visits in redis, with nothing but the standard library."""

import os
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REDIS = (os.environ["REDIS_HOST"], int(os.environ["REDIS_PORT"]))


def redis(*words):
    """Sends one command (RESP: an array of bulk strings) and returns its one-line reply without the type byte."""
    request = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in map(str.encode, words))
    with socket.create_connection(REDIS, timeout=5) as connection, connection.makefile("rb") as replies:
        connection.sendall(request)
        reply = replies.readline().decode().rstrip("\r\n")
    if not reply or reply[0] not in "+:":
        raise OSError(f"redis at {REDIS} answered {reply!r} to {words[0]}")
    return reply[1:]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            if self.path == "/healthz":
                status, text = 200, redis("PING")
            elif self.path == "/":
                status, text = 200, f"visit {redis('INCR', 'visits')}, {os.environ['GREETING']}"
            else:
                status, text = 404, "not found"
        except OSError as error:
            status, text = 503, str(error)
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(f"listening on port 8000, counting at {REDIS[0]}:{REDIS[1]}")
ThreadingHTTPServer(("", 8000), Handler).serve_forever()
