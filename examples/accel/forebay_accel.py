"""A client of `forebay accel-worker` for Python 3.9 and later; needs nothing but Python.

    python3 forebay_accel.py /run/web/accel.sock
"""

import fcntl
import json
import mmap
import os
import socket
import struct
import sys

F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 2, 4
MESSAGE_MAX = 160 * 1024


class Refused(Exception):
    """What the worker says when it does not do something."""


class Worker:
    """A connection, for one thread. Tasks run one after the other."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(path)
        self.memories = 0
        self.tasks = 0
        self.ask({"hello": {"version": 1}})

    def send(self, request, descriptors=()):
        socket.send_fds(self.socket, [json.dumps(request).encode()], list(descriptors))

    def hear(self):
        reply = self.socket.recv(MESSAGE_MAX)
        if not reply:
            raise ConnectionError("the worker is gone; connect again")
        return json.loads(reply)

    def ask(self, request, descriptors=()):
        self.send(request, descriptors)
        reply = self.hear()
        if isinstance(reply, dict) and "refused" in reply:
            raise Refused(reply["refused"]["why"])
        return reply

    def memory(self, length):
        """Memory that is shared: its number, and a mapping to read and write."""
        file = os.memfd_create("forebay-accel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(file, length)
            fcntl.fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
            self.memories += 1
            self.ask({"share": {"memory": self.memories, "bytes": length}}, [file])
            return self.memories, mmap.mmap(file, length)
        finally:
            os.close(file)

    def run(self, kernel, buffers, scalars=(), grid=(1, 1, 1)):
        """Runs a task; `buffers` are (number, mapping, whether it is written)."""
        self.tasks += 1
        pieces = [
            {"memory": number, "offset": 0, "length": len(mapping), "write": written}
            for number, mapping, written in buffers
        ]
        task = {"task": self.tasks, "kernel": kernel, "buffers": pieces}
        task |= {"scalars": list(scalars), "grid": list(grid)}
        self.send({"submit": [task]})
        outcome = self.hear()["answer"]["outcome"]
        if isinstance(outcome, dict) and "done" in outcome:
            return outcome["done"]
        raise Refused(outcome)


def main():
    worker = Worker(sys.argv[1])
    count = 1024
    a, b, total = (worker.memory(4 * count) for _ in range(3))
    a[1][:] = struct.pack(f"{count}f", *range(count))
    b[1][:] = struct.pack(f"{count}f", *([0.5] * count))
    run = worker.run("add", [(*a, False), (*b, False), (*total, True)], [{"u32": count}])
    sums = struct.unpack(f"{count}f", total[1][:])
    assert all(value == index + 0.5 for index, value in enumerate(sums)), sums
    print(f"{count} sums on {run['place']} in {run['took_us']:.1f} us")


if __name__ == "__main__":
    main()
