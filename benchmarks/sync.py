"""What SyncBatchNorm costs beside BatchNorm: `mpiexec -n 2 python benchmarks/sync.py`.

Each worker has a share of 64 rows. Printed are microseconds, on the slower worker in the best of many rounds (workers
that wait keep their cores busy): of a forward and a backward of the plain layer, of those of the synchronized one, of
one exchange, and of merging what 1,024 workers would have sent.
"""

import time

import numpy as np
from mpi4py import MPI

import nbbn
from nbbn.distributed import SyncBatchNorm
from nbbn.distributed._exchange import merged

CHANNELS = (64, 256, 1024, 2048)
ROWS = 64
CALLS, ROUNDS = 3, 300
MANY = 1024


def microseconds(work, comm, number=ROUNDS):
    """A call's time on the slower worker, in the best round."""
    rounds = []
    for _ in range(number):
        comm.Barrier()
        begun = time.perf_counter()
        for _ in range(CALLS):
            work()
        rounds.append((time.perf_counter() - begun) / CALLS * 1e6)
    slower = np.array(rounds)
    comm.Allreduce(MPI.IN_PLACE, slower, MPI.MAX)
    return slower.min()


def measure(comm, channels):
    rng = np.random.default_rng(comm.rank)
    x = rng.normal(size=(ROWS, channels)).astype(np.float32)
    plain, synchronized = nbbn.BatchNorm(channels), SyncBatchNorm(channels, comm=comm)

    def step(bn):
        bn.backward(bn(x))

    message = np.zeros(3 + 3 * channels)
    found = np.empty((comm.size, message.size))
    sent = np.ones(MANY), rng.normal(size=(MANY, 3, channels))
    step(plain), step(synchronized)
    return (
        microseconds(lambda: step(plain), comm),
        microseconds(lambda: step(synchronized), comm),
        microseconds(lambda: comm.Allgather(message, found), comm),
        microseconds(lambda: merged(*sent), comm, 5),
    )


def main():
    comm = MPI.COMM_WORLD
    nbbn.set_num_threads(1)
    if comm.rank == 0:
        print(f"| C | BatchNorm | SyncBatchNorm, {comm.size} workers | Allgather | merging {MANY} |")
        print("| ---: | ---: | ---: | ---: | ---: |")
    for channels in CHANNELS:
        found = measure(comm, channels)
        if comm.rank == 0:
            print(f"| {channels} |", " | ".join(f"{one:,.0f}" for one in found), "|")


if __name__ == "__main__":
    main()
