"""`Address`: where a server of metrics listens, as people write it."""

from __future__ import annotations

from typing import NamedTuple

_LOOPBACK = "127.0.0.1"


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """An address as people write it: ``9400``, ``:9400``, ``10.0.0.1:9400``, ``[::1]:9400``.

        Without a host it is the loopback's.

        Raises:
            ValueError: it is none.
        """
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
        is_odd = ":" in host and not text.startswith("[")
        if not 0 <= number <= 65535 or is_odd:
            raise ValueError(f"{text!r} is not an address like 9400, 127.0.0.1:9400 or [::1]:9400")
        return cls(host or _LOOPBACK, number)

    @property
    def url(self) -> str:
        """Where a scrape finds the metrics."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"
