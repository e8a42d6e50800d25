"""A clock that goes wrong, for one process and all that it starts: what the C library is asked for is some time ahead.

The kernel's clock, which stamps files, goes right meanwhile, as that of a file server does.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/time.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static time_t ahead(void) {
    const char *said = getenv("CLOCK_AHEAD_S");
    return said ? atoll(said) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        now->tv_sec += ahead();
    return done;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


def wrong_clock(directory: Path, ahead_s: int) -> dict[str, str]:
    """The environment of a process whose clock is so many seconds ahead. A C compiler makes the library for it."""
    source, library = directory / "wrong_clock.c", directory / "wrong_clock.so"
    if not library.exists():
        source.write_text(_SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_AHEAD_S": str(ahead_s)}
