"""What a writer leaves behind when it dies: of what age that is dead, and how Triton and torch name it."""

from __future__ import annotations

import time

from gpucache.disk.files import STALE_S

OLD = time.time() - STALE_S - 60
YOUNG = time.time() - STALE_S + 3000
"""Young still where a test that uses this comes half an hour after the tests were collected."""
UUID = "12345678-90ab-4cde-8f01-234567890abc"
