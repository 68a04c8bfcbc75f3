"""What lies between a server of the tests and its clients: round trips, a bandwidth that all answers share, and TLS."""

import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CERTIFICATE = Path(__file__).parent / "fixtures" / "localhost.pem"  # And its key; for "localhost", for a hundred years.

# Who sends sleeps no shorter times than this: they would cost more processor time than they are worth.
_LEAST_SLEEP = 0.002
# Sleeping takes longer than was asked for. So much of that may be made up for.
_MOST_BEHIND = 0.02


@dataclass
class Line:
    """A line: the seconds of a round trip, and the bytes a second of all bodies together; 0 is no limit."""

    latency: float = 0
    bandwidth: float = 0
    _free: float = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, nbytes: int) -> None:
        """Return when so many bytes more have gone through."""
        if not self.bandwidth:
            return
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - _MOST_BEHIND) + nbytes / self.bandwidth
            wait = self._free - now
        if wait > _LEAST_SLEEP:
            time.sleep(wait)


class FarServer(ThreadingHTTPServer):
    """A server on loopback, behind a line."""

    daemon_threads = True
    request_queue_size = 64
    # How often something goes to and fro before a connection's first request: for TCP, and once more for TLS 1.3.
    round_trips = 1

    def __init__(self, line: Line, handler: "type[FarHandler]") -> None:
        self.line = line
        super().__init__(("127.0.0.1", 0), handler)

    def use_tls(self) -> None:
        """Speak TLS from now on, as "localhost" and with a certificate that nobody trusts unasked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.round_trips = 2

    def handle_error(self, *_: object) -> None:
        pass  # Clients come and go.


class FarHandler(BaseHTTPRequestHandler):
    """A connection to it; its answers wait for ``server.line`` themselves."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    server: FarServer

    def setup(self) -> None:
        time.sleep(self.server.round_trips * self.server.line.latency)
        super().setup()

    def log_message(self, *_: object) -> None:
        pass
