"""Which commands are the same: how a command is known when it is started again, in another job and on other ports."""

from __future__ import annotations

import os
import re

from gpucache.warm.ahead.short_digest import short_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DROPPED = frozenset(
    {
        # torchrun (torch/distributed/run.py of 2.13), accelerate launch, deepspeed
        *("rdzv-id", "rdzv-endpoint", "rdzv-conf", "node-rank", "master-addr", "master-port"),
        *("local-addr", "log-dir", "machine-rank", "main-process-ip", "main-process-port"),
        *("include", "exclude", "hostfile", "rank", "local-rank"),
        # srun and sbatch; mpirun and mpiexec
        *("jobid", "job-id", "job-name", "nodelist", "output", "error"),
        *("host", "hosts", "machinefile", "rankfile"),
        # vllm serve and ray; and what programs call such things themselves
        *("port", "server-port", "api-port", "data-parallel-rank", "data-parallel-address"),
        *("data-parallel-rpc-port", "address", "node-ip-address", "run-id", "run-name"),
        *("session-id", "trial-id", "worker-id"),
    }
)
"""Options (written with ``-`` or ``_``, any case) whose values say where and in which job a program runs, not what."""
_SHORT_DROPPED = frozenset({"-H", "-w", "-J"})
"""Of mpirun (``-H host:4``) and srun (``-w node``, ``-J name``), where the command is one of these."""
_LAUNCHERS = frozenset(
    {"srun", "sbatch", "mpirun", "mpiexec", "orterun", "prterun", "mpiexec.hydra"}
)
_JOB_VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_ARRAY_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID"),
    *("PALS_APID", "TORCHELASTIC_RUN_ID", "RAY_JOB_ID", "COBALT_JOBID", "JOB_ID"),
)
"""Variables whose values name a job; where such a value stands in a word (a path), it counts as no difference."""
_LEAST_LETTERS = 3
"""A shorter value of such a variable would be found by chance."""


def command_id(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """Sixteen hexadecimal digits that are equal for a command and for the same command in another job.

    Two commands are the same if their words are, after this: a word that is the path of something there counts as its
    absolute path; the value of an option that says where or in which job (`_DROPPED`) is dropped, in the next word or
    behind ``=``; the value of a variable that names the job (`SLURM_JOB_ID`) counts as ``#`` wherever it stands. All
    else counts, numbers too: the number of ranks, a seed, the size of a batch.
    """
    return short_digest(same_words(words, environ))


def same_words(words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The words of a command without what differs from job to job, as `command_id` says."""
    kept = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        if _says_where(name, words[0]):
            kept.append(_spelled(name))
            if not equals and left and not left[0].startswith("-"):
                left.pop(0)
            continue
        kept.append(_without_job(_absolute(word), environ))
    return kept


def _says_where(option: str, program: str) -> bool:
    if option.startswith("--"):
        return _spelled(option)[2:] in _DROPPED
    return option in _SHORT_DROPPED and os.path.basename(program) in _LAUNCHERS


def _spelled(option: str) -> str:
    return option.replace("_", "-").lower() if option.startswith("--") else option


def _absolute(word: str) -> str:
    is_there = not word.startswith("-") and "\0" not in word and os.path.exists(word)
    return os.path.abspath(word) if is_there else word


def _without_job(word: str, environ: Mapping[str, str]) -> str:
    for name in _JOB_VARIABLES:
        value = environ.get(name, "")
        if len(value) >= _LEAST_LETTERS:
            word = re.sub(rf"(?<![0-9]){re.escape(value)}(?![0-9])", "#", word)
    return word
