from __future__ import annotations

import shlex

import pytest

from gpucache.warm.ahead.command import command_id, same_words


def known(line: str, **environ: str) -> str:
    return command_id(shlex.split(line), environ)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id 123 --rdzv-endpoint node17:29500 train.py",
            "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id=456 --rdzv_endpoint=node3:4711 train.py",
        ),
        (
            "torchrun --node_rank 0 --master_addr a --master-port=29500 train.py",
            "torchrun --node_rank 3 --master_addr b --master-port=29501 train.py",
        ),
        (
            "accelerate launch --machine_rank 0 --main_process_ip a --main_process_port 1 train.py",
            "accelerate launch --machine_rank 1 --main_process_ip b --main_process_port 2 train.py",
        ),
        (
            "srun --jobid 77 -w node1 --output a/%j python train.py",
            "srun --jobid 78 -w node2 --output b/%j python train.py",
        ),
        ("mpirun -H a:4,b:4 -n 8 python train.py", "mpirun -H c:4,d:4 -n 8 python train.py"),
        ("mpirun --hostfile /tmp/1 python train.py", "mpirun --hostfile /tmp/2 python train.py"),
        (
            "vllm serve meta/Llama --port 8000 --host 0.0.0.0 -tp 4",
            "vllm serve meta/Llama --port 8001 --host 10.0.0.1 -tp 4",
        ),
        ("python train.py --local_rank=0 --rank 0", "python train.py --local_rank=1 --rank 9"),
    ],
    ids=lambda line: line.split()[0],
)
def test_where_and_in_which_job_a_command_runs_is_no_difference(one, other):
    assert known(one) == known(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("python train.py", "python tune.py"),
        ("torchrun --nproc-per-node 8 train.py", "torchrun --nproc-per-node 4 train.py"),
        ("vllm serve a -tp 4", "vllm serve a -tp 8"),
        ("vllm serve a --port 1", "vllm serve b --port 1"),
        ("python train.py --seed 1", "python train.py --seed 2"),
        ("python train.py -H 1", "python train.py -H 2"),
        ("python train.py a b", "python train.py 'a b'"),
        ("python train.py --port", "python train.py"),
    ],
)
def test_all_else_is_one(one, other):
    assert known(one) != known(other)


def test_an_option_without_a_value_takes_no_option_with_it():
    assert same_words(["x", "--port", "--seed", "3"], {}) == ["x", "--port", "--seed", "3"]


def test_the_number_of_the_job_is_none_wherever_it_stands():
    for job in ("4711", "12"):
        line = f"python train.py --out /logs/{job}/run"
        other = "python train.py --out /logs/999/run"
        same = known(line, SLURM_JOB_ID=job) == known(other, SLURM_JOB_ID="999")
        assert same == (len(job) > 2), "two letters would be found by chance"
    assert same_words(["a", "x47110", "4711"], {"SLURM_JOB_ID": "4711"}) == ["a", "x47110", "#"]


def test_one_script_is_the_same_from_everywhere_and_two_of_one_name_are_two(tmp_path, monkeypatch):
    ids = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").touch()
        monkeypatch.chdir(tmp_path / name)
        ids.add(known("python train.py"))
        monkeypatch.chdir(tmp_path)
        ids.add(known(f"python {name}/train.py"))
        ids.add(known(f"python {tmp_path}/{name}/train.py"))
    assert len(ids) == 2


def test_any_word_is_a_word():
    assert len(command_id(["\udcff", "\0", "=", "--", "-", ""], {"SLURM_JOB_ID": "(?"})) == 16
