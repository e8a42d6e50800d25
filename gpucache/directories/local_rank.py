"""The local rank: the number of this process among those of its node, as torchrun, mpirun, srun and others state it."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# The variable with the local rank, and those by which that launcher states how many tasks it put on this node. torchrun
# always means it; the others set a rank for a single task too, which may itself be a launcher. The nearer a launcher
# usually is to the program, the earlier it stands: mpirun is started in a step of Slurm, Flux or PALS.
_RANKS = (
    # torchrun (torch/distributed/elastic of 2.13), and accelerate, deepspeed, lightning as torchrun
    ("LOCAL_RANK", ()),
    # horovodrun (horovod/runner/gloo_run.py of 0.28)
    ("HOROVOD_LOCAL_RANK", ("HOROVOD_LOCAL_SIZE",)),
    # Open MPI ("Environment variables set for MPI applications" of 5.0), IBM Spectrum MPI
    ("OMPI_COMM_WORLD_LOCAL_RANK", ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    # MVAPICH2's mpirun_rsh and mpispawn ("MPIRUN_RSH Parameters" of its user guide)
    ("MV2_COMM_WORLD_LOCAL_RANK", ("MV2_COMM_WORLD_LOCAL_SIZE",)),
    # Hydra: MPICH, Intel MPI ("Environment Variables Not Propagated by Hydra", 2021.16)
    ("MPI_LOCALRANKID", ("MPI_LOCALNRANKS",)),
    # HPE Cray: PMI under PALS; PALS alone; PMIx under PALS (as job scripts of ALCF's machines read them)
    ("PMI_LOCAL_RANK", ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE")),
    ("PALS_LOCAL_RANKID", ("PALS_LOCAL_SIZE",)),
    ("PMIX_LOCAL_RANK", ("PMIX_LOCAL_SIZE", "PALS_LOCAL_SIZE")),
    # IBM's jsrun (tests of Open MPI that run under its job step manager read both)
    ("JSM_NAMESPACE_LOCAL_RANK", ("JSM_NAMESPACE_LOCAL_SIZE",)),
    # Flux, which states the tasks and nodes of the job only (flux-core, src/shell/task.c)
    ("FLUX_TASK_LOCAL_ID", ("FLUX_JOB_SIZE",)),
    # srun ("Output environment variables" of srun(1))
    ("SLURM_LOCALID", ("SLURM_STEP_TASKS_PER_NODE",)),
)
RANK_VARIABLES = tuple(name for name, _ in _RANKS)
_NUMBER = r"[0-9]{1,6}"
_TASKS_OF_NODES = r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?"


def local_rank(environ: Mapping[str, str]) -> tuple[int | None, str | None]:
    """The rank of this process on its node, and the variable that says so.

    All but `LOCAL_RANK` count only where their launcher states that it put more than one task on this node:
    ``srun --ntasks-per-node=1 gpucache run -- torchrun …`` must not pin every rank to device 0. Where two launchers say
    different ranks, as where one has started the other, the first of `_RANKS` holds: the inner one, by which the
    program, too, chooses its device.
    """
    for name, sizes in _RANKS:
        text = environ.get(name, "")
        if not re.fullmatch(_NUMBER, text):
            continue
        several = any(_tasks(environ, size) > 1 for size in sizes)
        if several or not sizes:
            return int(text), name
    return None, None


def tasks_here(environ: Mapping[str, str]) -> int:
    """How many tasks a launcher has put on this node, as the one states that gives the local rank; 0 without one."""
    rank, source = local_rank(environ)
    if rank is None:
        return 0
    sizes = dict(_RANKS)[source or ""] or ("LOCAL_WORLD_SIZE",)
    return max(_tasks(environ, size) for size in sizes)


def _tasks(environ: Mapping[str, str], name: str) -> int:
    """How many tasks the launcher states for this node; 0 where it states nothing.

    Flux states the tasks of all nodes of the job, of which each has its share, rounded up.

    Slurm lists all nodes of the step, as in ``4(x2),1``: two nodes of four tasks, then a node of one. `SLURM_NODEID`
    counts into that list.
    """
    text = environ.get(name, "")
    if re.fullmatch(_NUMBER, text):
        nodes = _nodes(environ, name)  # one, but with Flux: only its number is not about this node
        return (int(text) + nodes - 1) // nodes
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


def _nodes(environ: Mapping[str, str], name: str) -> int:
    """How many nodes a number of tasks is about."""
    nodes = environ.get("FLUX_JOB_NNODES", "")
    if name == "FLUX_JOB_SIZE" and re.fullmatch(_NUMBER, nodes):
        return max(1, int(nodes))
    return 1
