"""`serve`: what a worker does: it compiles one recipe after another, and says how each has ended."""

from __future__ import annotations

import os

from gpucache.escapes import printable
from gpucache.forks import run_at_exit
from gpucache.warm.pool.forking import take_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from gpucache.warm.pool.channel import Channel
    from gpucache.warm.pool.plan import Job, Plan

_LETTERS = 1000


def serve(plan: Plan, channel: Channel, replay: Any, functions: Any) -> NoReturn:
    """Do the jobs that the messages name, until the connection is closed; then remove what was staged, and end.

    Ends without what modules have registered with `atexit`: that is for the end of their program.
    """
    take_name("gpucache-worker")
    jobs = {job.number: job for job in plan.jobs}
    while (received := channel.receive()) is not None:
        job = jobs[received.message["job"]]
        channel.send(_done(plan, job, replay, functions))
    run_at_exit()
    os._exit(0)


def _done(plan: Plan, job: Job, replay: Any, functions: Any) -> dict[str, Any]:
    """Do a job; return how that has ended, as a message."""
    settings = plan.settings
    said: dict[str, Any] = {"job": job.number, "key": None, "seconds": 0.0}
    try:
        outcome = replay.replay(
            plan.recipe(job),
            job.target,
            functions,
            root=settings.root,
            exact=settings.exact,
            dry_run=settings.dry_run,
        )
    except BaseException as error:  # a function of a constant may call sys.exit
        return {**said, "end": "failed", "why": in_a_line(error)}
    said.update(end=outcome.end, key=outcome.key, seconds=outcome.seconds)
    return {**said, "why": shortened(outcome.why)}


def in_a_line(error: BaseException) -> str:
    """An exception, with its type, in a line that is safe to show anywhere."""
    text = str(error)
    name = type(error).__name__
    return shortened(f"{name}: {text}" if text else name)


def shortened(text: str) -> str:
    """A text in one line that is safe to show anywhere; of a very long one the beginning."""
    return printable(" ".join(text.split()))[:_LETTERS]
