"""Takes orders: into PostgreSQL, into the queue for the worker, and into a counter in redis.

POST /orders/ID with the item as body, which may be repeated; GET /orders says how many there are; GET /healthz.
"""

import json
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika
import shop

mine = threading.local()
counters = shop.counters()


def kept(name, make):
    """This thread's connection, which lasts as long as its client's."""
    if not hasattr(mine, name):
        setattr(mine, name, make())
    return getattr(mine, name)


def order(identity, item):
    database, queue = kept("database", shop.database), kept("queue", shop.queue)
    with database, database.cursor() as cursor:
        cursor.execute("insert into orders (id, item) values (%s, %s) on conflict do nothing returning true", (identity, item))
        new = cursor.fetchone() is not None
    queue.basic_publish("", shop.QUEUE, identity.encode(), pika.BasicProperties(delivery_mode=2))
    if new:
        counters.incr("orders")
    return {"id": identity, "by": socket.gethostname()}


def count():
    with kept("database", shop.database) as database, database.cursor() as cursor:
        cursor.execute("select count(*), count(*) filter (where done) from orders")
        orders, done = cursor.fetchone()
    return {"orders": orders, "done": done, "counted": int(counters.get("orders") or 0)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, work):
        try:
            status, value = 200, work()
        except Exception as error:
            # Whichever connection it was, the next request has new ones.
            mine.__dict__.clear()
            status, value = 503, {"error": f"{type(error).__name__}: {error}".strip()}
            print(value["error"], file=sys.stderr)
        body = (json.dumps(value) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer((lambda: "well") if self.path == "/healthz" else count)

    def do_POST(self):
        item = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer(lambda: order(self.path.rpartition("/")[2], item))

    def log_request(self, *_):
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ThreadingHTTPServer.request_queue_size = 128
print("listening on port 8000")
ThreadingHTTPServer(("", 8000), Handler).serve_forever()
