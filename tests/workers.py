"""Workers of one process: threads that meet to exchange what they have."""

import threading
from concurrent.futures import ThreadPoolExecutor

TIMEOUT = 120  # seconds, after which a worker that nobody answers gives up


class Worker:
    """The communicator of one of several threads; ``sent`` has what it gave."""

    def __init__(self, rank, slots, barrier):
        self.rank, self.size, self.sent = rank, len(slots), []
        self._slots, self._barrier = slots, barrier

    def allgather(self, array):
        self.sent.append(array)
        self._slots[self.rank] = array
        self._barrier.wait(TIMEOUT)
        found = list(self._slots)
        self._barrier.wait(TIMEOUT)
        return found


def meeting(size):
    """The communicators of ``size`` threads."""
    slots, barrier = [None] * size, threading.Barrier(size)
    return [Worker(rank, slots, barrier) for rank in range(size)]


def together(size, work):
    """Call ``work(comm)`` in ``size`` threads; what each returned or raised, in rank order."""

    def run(comm):
        try:
            return work(comm)
        except BaseException as error:  # for the caller to look at
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, meeting(size)))


def results(size, work):
    """The same where none may raise."""
    found = together(size, work)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found
