"""The local rank: the number of this process among those of its node, as torchrun, mpirun or srun state it."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# The variable with the local rank, and those by which that launcher states how many tasks it put on this node. torchrun
# always means it; mpirun and srun set a rank for a single task too, which may itself be a launcher.
_RANKS = (
    ("LOCAL_RANK", ()),
    ("OMPI_COMM_WORLD_LOCAL_RANK", ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    ("MPI_LOCALRANKID", ("MPI_LOCALNRANKS",)),
    ("PMI_LOCAL_RANK", ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")),
    ("SLURM_LOCALID", ("SLURM_STEP_TASKS_PER_NODE",)),
)
_NUMBER = r"[0-9]{1,6}"
_TASKS_OF_NODES = r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?"


def local_rank(environ: Mapping[str, str]) -> tuple[int | None, str | None]:
    """The rank of this process on its node, and the variable that says so.

    All but `LOCAL_RANK` count only where their launcher states that it put more than one task on this node:
    ``srun --ntasks-per-node=1 gpucache run -- torchrun …`` must not pin every rank to device 0.
    """
    for name, sizes in _RANKS:
        text = environ.get(name, "")
        if not re.fullmatch(_NUMBER, text):
            continue
        several = any(_tasks(environ, size) > 1 for size in sizes)
        if several or not sizes:
            return int(text), name
    return None, None


def _tasks(environ: Mapping[str, str], name: str) -> int:
    """How many tasks the launcher states for this node; 0 where it states nothing.

    Slurm lists all nodes of the step, as in ``4(x2),1``: two nodes of four tasks, then a node of one. `SLURM_NODEID`
    counts into that list.
    """
    text = environ.get(name, "")
    if re.fullmatch(_NUMBER, text):
        return int(text)  # one number is about this node
    node = environ.get("SLURM_NODEID", "0")
    nodes_before = 0
    if re.fullmatch(_NUMBER, node):
        nodes_before = int(node)
    for part in text.split(","):
        match = re.fullmatch(_TASKS_OF_NODES, part)
        if match is None:
            return 0
        tasks = int(match[1])
        nodes = int(match[2] or 1)
        if nodes_before < nodes:
            return tasks
        nodes_before -= nodes
    return 0
