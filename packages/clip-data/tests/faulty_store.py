"""Stores on this machine behind a proxy that fails as stores do: a process of its own, for pyarrow may wait on a store
while it holds the interpreter's lock.

Run as ``python faulty_store.py s3|gs``; it prints its port and the store's. ``GET /faults/NUM`` begins to spoil every
second answer to a read or a write until it has made so many faults, ``GET /faults/NUM/about`` every second answer to a
question about objects, what there are and how large, and ``GET /faults`` says which faults it has made.
"""

import http.client
import itertools
import json
import logging
import re
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ALL = 1000  # so many faults spoil every answer
KINDS = ("429", "503", "reset", "cut", "stall")


class Proxy(ThreadingHTTPServer):
    """Passes requests on, and spoils some."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, backend):
        super().__init__(("127.0.0.1", 0), Handler)
        self.backend, self.num_faults, self.made, self.of = backend, 0, [], "data"
        self.lock, self.count = threading.Lock(), itertools.count()

    def fault(self):
        with self.lock:
            is_spared = next(self.count) % 2 and self.num_faults < ALL
            if len(self.made) >= self.num_faults or is_spared:
                return None
            self.made.append(KINDS[len(self.made) % len(KINDS)])
            return self.made[-1]

    def handle_error(self, request, client_address):
        """Clients hang up on a proxy that fails them."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def pass_on(self):
        if self.path.startswith("/faults"):
            if number := self.path.removeprefix("/faults").strip("/"):
                number, _, of = number.partition("/")
                self.server.num_faults, self.server.made, self.server.of = int(number), [], of or "data"
            body = json.dumps(self.server.made).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        body = self.body()
        is_google = "/storage/" in self.path
        is_about = self.command == "HEAD" or (self.command == "GET" and "alt=media" not in self.path and is_google)
        is_about |= self.command == "GET" and "list-type" in self.path
        is_read = self.command == "GET" and not is_about and re.search(r"\d\.(tfrecord|tar|parquet|csv|png)", self.path)
        is_write = self.command in ("PUT", "POST") and "out" in self.path
        is_wanted = is_about if self.server.of == "about" else is_read or is_write
        fault = self.server.fault() if is_wanted else None
        if fault == "stall":
            time.sleep(2)
        if fault in ("429", "503"):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        backend = http.client.HTTPConnection(*self.server.backend, timeout=20)
        hop = ("transfer-encoding", "expect", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
        backend.request(self.command, self.path, body, {**headers, "Connection": "close"})
        answer = backend.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if fault in ("reset", "cut"):
            self.wfile.write(data[: len(data) // 2])
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815


def s3():
    """Starts an S3 store and returns its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    return server.get_host_and_port()


def gs():
    """Starts a GCS store and returns its address."""
    from gcp_storage_emulator.server import create_server

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    create_server("127.0.0.1", port, in_memory=True).start()
    return "127.0.0.1", port


if __name__ == "__main__":
    backend = {"s3": s3, "gs": gs}[sys.argv[1]]()
    proxy = Proxy(backend)
    sys.stdout.write(f"{proxy.server_port} {backend[1]}\n")
    sys.stdout.flush()
    proxy.serve_forever()
