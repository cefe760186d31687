"""SyncBatchNorm in processes of their own: mpi4py under mpiexec, and torch.distributed with gloo."""

import os
import shutil
import sys
from pathlib import Path

import processes
import pytest

pytestmark = pytest.mark.long

WORK = r"""
import os, signal, subprocess, sys
import numpy as np
import nbbn
from nbbn.distributed import SyncBatchNorm

def arrays():
    rng = np.random.default_rng(0)
    return rng.normal(3, 2, (12, 3, 5)), rng.normal(0, 1, (12, 3, 5))

def share(array, rank, size):
    cuts = {1: [], 2: [7], 4: [1, 1, 9]}[size]
    return np.split(array, cuts)[rank]

def state(bn):
    return np.concatenate([bn.running_mean, bn.running_var, bn.grad_gamma, bn.grad_beta])

def compare(bn, rank, size):
    "A step, beside that of one layer that has everything; the bits of the state."
    x, grad_y = arrays()
    one = nbbn.BatchNorm(3, dtype=np.float64)
    expected = one(x), one.backward(grad_y)
    found = bn(share(x, rank, size)), bn.backward(share(grad_y, rank, size))
    for ours, whole in zip(found, expected):
        np.testing.assert_allclose(ours, share(whole, rank, size), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(state(bn), state(one), rtol=1e-12, atol=1e-13)
    return state(bn).tobytes().hex()

def fail_on_rank_1(bn, rank):
    "What each rank gets to see, and that nothing changes."
    before = state(bn)
    try:
        bn(np.ones((4, 3)) if rank != 1 else np.ones((4, 4)))
    except (RuntimeError, ValueError) as error:
        assert (state(bn) == before).all()
        return f"{type(error).__name__}:{'ValueError on rank 1' in str(error)}"
"""

MPI = (
    WORK
    + r"""
from mpi4py import MPI
world = MPI.COMM_WORLD
for comm in (MPI.COMM_SELF, world.Split(world.rank % 2), world):
    bn = SyncBatchNorm(3, comm=comm, dtype=np.float64)
    mine = compare(bn, comm.rank, comm.size)
    assert len(set(comm.allgather(mine))) == 1
failures = world.gather(fail_on_rank_1(bn, world.rank))

# Only the first one reads the file.
if world.rank == 0:
    other = SyncBatchNorm(3, comm=world, dtype=np.float64)
    other.running_mean[:] = 7
    other.save("bn.npz")
    saved = nbbn.BatchNorm.load("bn.npz").state_dict()
bn.load_state_dict(world.bcast(saved if world.rank == 0 else None))
assert (bn.running_mean == 7).all()

try:
    SyncBatchNorm(3, comm=MPI.COMM_NULL)
except TypeError as error:
    assert str(error).startswith("comm: expected an mpi4py communicator")
    if world.rank == 0:
        print(*failures)
"""
)

MPI_KILLED = (
    WORK
    + r"""
from mpi4py import MPI
bn = SyncBatchNorm(3, comm=MPI.COMM_WORLD)
bn(np.ones((4, 3), np.float32))
if MPI.COMM_WORLD.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
bn(np.ones((4, 3), np.float32))
print("not reached")
"""
)

# The first process starts the second one.
GLOO = (
    WORK
    + r"""
import torch.distributed as dist
if len(sys.argv) == 1:
    rank = 0
    other = subprocess.Popen([sys.executable, __file__, "1"])
else:
    rank = 1
dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=rank, world_size=2)
bn = SyncBatchNorm(3, comm=dist.group.WORLD, dtype=np.float64)
digests = [None, None]
dist.all_gather_object(digests, compare(bn, rank, 2))
assert digests[0] == digests[1]
seen = [None, None]
dist.all_gather_object(seen, fail_on_rank_1(bn, rank))
alone = dist.new_group([1])
if rank == 1:
    compare(SyncBatchNorm(3, comm=alone, dtype=np.float64), 0, 1)
    os.kill(os.getpid(), signal.SIGKILL)
try:
    SyncBatchNorm(3, comm=alone)  # which this rank is no member of
except TypeError as error:
    assert str(error).startswith("comm: expected an mpi4py communicator")
before = state(bn)
try:
    bn(np.ones((4, 3)))
except RuntimeError as error:
    assert (state(bn) == before).all()
    print(*seen, "closed" if "closed by peer" in str(error) else error)
assert other.wait() == -signal.SIGKILL
sys.stdout.flush()
os._exit(0)  # torch's own clearing up may abort where a peer was killed
"""
)


def mpiexec(size):
    """The command that starts workers; it comes with the wheels of MPI, or with the system's."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("mpiexec, which mpi4py's tests need, is not installed")
    return found, "-n", str(size)


def test_mpi():
    """Four, two pairs of, and single workers; uneven and empty shares; failures; files."""
    seen = processes.run(MPI, launcher=mpiexec(4))
    assert seen == ["RuntimeError:True", "ValueError:False", *["RuntimeError:True"] * 2]


def test_a_killed_rank_ends_all_of_mpiexec():
    printed = processes.run(MPI_KILLED, launcher=mpiexec(2), timeout=300, fails=True)
    assert "reached" not in printed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process")
def test_gloo():
    """Two workers, of which the second one is killed: the first one gets an exception."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    assert processes.run(GLOO, timeout=300) == ["RuntimeError:True", "ValueError:False", "closed"]
