"""A server of metrics for Prometheus to scrape: text, or OpenMetrics where a scrape asks for that, also compressed.

It answers whoever reaches its address, who learns the root's path, hosts and what is counted. So it is on the loopback
unless another address is named. A look that fails is answered by 503 and why, which is no number that has fallen. Of a
client that says nothing for 10 seconds nothing is heard any more; at most 16 are served at once, and others wait in the
kernel's queue.
"""

from __future__ import annotations

import socket
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from gpucache.errors import GpuCacheError
from gpucache.escapes import printable
from gpucache.watch.metrics.address import Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from gpucache.watch.metrics.families import Family

_SILENT_S = 10.0
_AT_ONCE = 16


class CannotListen(GpuCacheError):
    """The address of a server cannot be had."""

    def __init__(self, address: Address, error: OSError) -> None:
        where = f"{address.host}:{address.port}"
        why = error.strerror or str(error)
        hint = "name another address or port, or end what listens there"
        super().__init__(f"could not listen at {where}: {why}", hint, address, error)
        self.address = address
        self.error = error


class _Handler(WSGIRequestHandler):
    timeout = _SILENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape comes every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: Address) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        """Take the address; asks no name service for the name of this host, as the class above would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name = str(self.server_address[0])
        self.server_port = int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread for a request, once fewer than 16 are at work."""
        self._free.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has gone, or has spoken no HTTP."""


def _saying_why(app: WSGIApplication) -> WSGIApplication:
    """The application, which answers that it has no numbers now, and why, where a look has failed."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except GpuCacheError as error:
            kind = [("Content-Type", "text/plain; charset=utf-8")]
            start_response("503 Service Unavailable", kind)
            return [f"{printable(error.problem)}\n".encode()]

    return answer


class MetricsServer:
    """A server that looks anew for each scrape, one after the other. A look may raise `GpuCacheError`.

    Raises:
        CannotListen: the address is taken, or is none of this machine.
    """

    def __init__(self, address: Address, look: Callable[[], Iterable[Family]]) -> None:
        from prometheus_client import make_wsgi_app

        from gpucache.watch.metrics.exposition import registry

        at_a_time = threading.Lock()

        def locked_look() -> Iterable[Family]:
            with at_a_time:
                return look()

        try:
            self._server = _Server(address)
        except (OSError, OverflowError) as error:
            raise CannotListen(address, OSError(*error.args)) from error
        self._server.set_app(_saying_why(make_wsgi_app(registry(locked_look))))

    @property
    def address(self) -> Address:
        """Where it listens; of port 0, the port that the kernel has chosen."""
        return Address(self._server.server_name, self._server.server_port)

    def serve(self) -> None:
        """Answer until this thread is interrupted, or `stop` is called in another one."""
        try:
            self._server.serve_forever()
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """Let `serve` return, in another thread."""
        self._server.shutdown()
