"""The web server of the demo: says its version and which task answered. Needs nothing but Python.

python3 web.py ADDRESS PORT

A task's program, not part of the lab: the lab copies this file into its directory.
"""

import http.server
import os
import socket
import sys


class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in one packet each; waiting for an answer between them costs 40 ms.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        version = os.environ.get("VERSION", "1")
        slot = os.environ.get("SWARMLET_TASK_SLOT", "?")
        node = os.environ.get("SWARMLET_NODE_HOSTNAME", socket.gethostname())
        body = f"web version {version}: task {slot} on {node}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Silent: at hundreds of requests a second the log would be the main work."""


class Server(http.server.ThreadingHTTPServer):
    # The standard library's 5 lets the kernel refuse connections under load.
    request_queue_size = 256


def main(address: str, port: int) -> None:
    with Server((address, port), Hello) as server:
        print(f"serving on {address}:{port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
