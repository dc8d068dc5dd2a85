"""In a process group: where SyncBatchNorm trains, and a model that is sharded."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

SCRIPT = """
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from pytest_bncheck import InputError, check

def net():
    torch.manual_seed(0)
    parts = nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
    return nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(*parts)).to(device)

def batch():
    everything = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    centres = 3.0 * torch.randn(4, 20, generator=everything)
    samples = centres[labels] + torch.randn(64, 20, generator=everything)
    share = slice(rank * 64 // count, (rank + 1) * 64 // count)
    return samples[share].to(device), labels[share].to(device)

def say(name, run):
    try:
        report = run()
        text = f"{report.verdict} {[finding.code for finding in report.findings]}"
    except InputError as error:
        text = f"InputError: {error}"
    print(f"<{rank} {name}: {text}>", flush=True)

dist.init_process_group("gloo")
rank, count = dist.get_rank(), dist.get_world_size()
device = torch.device(KIND, rank) if KIND == "cuda" else torch.device("cpu")

# PyTorch itself refuses to wrap SyncBatchNorm on a CPU: "only work with GPU modules".
wrap = DistributedDataParallel if KIND == "cuda" else nn.Sequential
say("training", lambda: check(wrap(net()), batch()))

frozen = net()
frozen[1].eval()
say("frozen", lambda: check(frozen, batch(), steps=30))

def held(model):
    tensors = {**model.state_dict(), **{f"{n}.grad": p.grad for n, p in model.named_parameters()}}
    return {name: getattr(t, "to_local", lambda: t)().clone() for name, t in tensors.items()}

def step(model):
    torch.nn.functional.cross_entropy(model(batch()[0]), batch()[1]).backward()

torch.manual_seed(0)
parts = nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
sharded = fully_shard(nn.Sequential(fully_shard(parts[0]), *parts[1:]).to(device))
step(sharded)
before, kinds = held(sharded), list(map(type, sharded.parameters()))
say("sharded", lambda: check(sharded, batch(), steps=40))
same = all(torch.equal(value, held(sharded)[name]) for name, value in before.items())
step(sharded)
print(f"<{rank} restored: {same and kinds == list(map(type, sharded.parameters()))}>", flush=True)
os._exit(0)  # all is said, and gloo's threads abort some processes on their way out
"""


@functools.cache
def in_two_processes(kind: str) -> dict[str, str]:
    """What each of two processes says of each check."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(f'KIND = "{kind}"\n{SCRIPT}')
        done = subprocess.run(
            [*command, str(script)], capture_output=True, text=True, timeout=300, env=environment
        )
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"<(\d \w+): ([^>]*)>", done.stdout))


def test_on_a_cpu_it_cannot_train_and_one_message_says_so() -> None:
    said = in_two_processes("cpu")
    for rank in (0, 1):
        assert said[f"{rank} training"].startswith(
            "InputError: model: 0.1 is a SyncBatchNorm, which PyTorch trains on GPUs only"
        )
        assert said[f"{rank} frozen"] == "pass []"


def test_a_sharded_model_is_judged_and_restored() -> None:
    said = in_two_processes("cpu")
    for rank in (0, 1):
        assert said[f"{rank} sharded"] == "fail ['BN402']"
        assert said[f"{rank} restored"] == "True"


@pytest.mark.skipif(
    torch.cuda.device_count() < 2,
    reason="SyncBatchNorm in two processes needs CUDA and a GPU for each of them",
)
def test_on_gpus_it_is_as_any_other() -> None:
    said = in_two_processes("cuda")
    for rank in (0, 1):
        assert said[f"{rank} training"] == "pass []"
        assert said[f"{rank} frozen"] == "pass []"
