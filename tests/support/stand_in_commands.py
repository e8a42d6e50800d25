"""A directory of commands for the PATH of a test: this Python, and what stands for the launchers of a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

from support.ranks import PYTHON

# What a launcher does for each of its tasks, as far as a command can see.
_SRUN = """
tasks=$2; shift 2
for n in $(seq 0 $((tasks - 1))); do
    SLURM_LOCALID=$n SLURM_STEP_TASKS_PER_NODE=$tasks "$@" &
done
wait
"""
_MPIRUN = """
tasks=$2; shift 2
for n in $(seq 0 $((tasks - 1))); do
    OMPI_COMM_WORLD_LOCAL_RANK=$n OMPI_COMM_WORLD_LOCAL_SIZE=$tasks "$@" &
done
wait
"""


def stand_in_commands(directory: Path) -> Path:
    """Make ``bin`` in a directory: `python`, `gpucache`, `sudo`, `srun --ntasks-per-node N` and `mpirun -n N`."""
    made = directory / "bin"
    if not made.exists():
        made.mkdir()
        _write(made / "python", f'exec {PYTHON} "$@"')
        _write(made / "gpucache", f'exec {sys.executable} -m gpucache "$@"')
        _write(made / "sudo", 'exec "$@"')
        _write(made / "srun", _SRUN)
        _write(made / "mpirun", _MPIRUN)
    return made


def _write(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
