"""Where the `gpucache` script starts: `main` runs the command of a command line, and makes errors exit codes.

Data goes to stdout, everything else to stderr. Only the modules of this folder print.

Exit codes: 0 success; 1 an expected failure; 2 wrong usage; 3 an unexpected failure; 130 interrupted. `gpucache run`
ends as its command does, or with 127 (not found) or 126 (not executable) as a shell would.

The command lines that start ranks and workers (`path`, `env` and `run`, in their usual forms) are read by `quick`;
`commands`, which imports click, reads all others. Importing click takes as long as Python itself takes to start.
"""

from __future__ import annotations

import errno
import os
import sys

from gpucache.cli import quick, settings
from gpucache.cli.failures import complain, complain_of_defect, complain_of_refusal, wants_json
from gpucache.cli.terminal import OutputError, begin, end_streams, say
from gpucache.errors import GpuCacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that these words call, by default those of this process; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    settings.begin()
    begin()
    try:
        call = quick.read(words, os.environ)
        if call is not None:
            return call.execute()
        from gpucache.cli.commands import run_with_click

        return run_with_click(words)
    except GpuCacheError as error:
        complain(error, as_json=wants_json(words))
        return 2 if error.error_kind == "usage" else 1
    except KeyboardInterrupt:
        say("")  # what comes next begins a line
        return 130
    except OutputError as error:
        reader_has_gone = error.cause.errno == errno.EPIPE  # and knows why
        if not reader_has_gone:
            say(f"error: could not write to stdout: {error.cause.strerror}")
        return 1
    except (OSError, MemoryError) as error:
        complain_of_refusal(error, as_json=wants_json(words))
        return 1
    except Exception:
        complain_of_defect(as_json=wants_json(words))
        return 3
    finally:
        end_streams()
