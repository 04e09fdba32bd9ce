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

F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1033, 2, 4, 8
MESSAGE_MAX = 160 * 1024


class Refused(Exception):
    """What the worker says when it does not do something."""


class Worker:
    """A connection, for one thread. Each task that is submitted is waited for once, in any order."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(path)
        self.memories = 0
        self.tasks = 0
        self.answers = {}
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
        while isinstance(reply, dict) and "answer" in reply:
            self.answers[reply["answer"]["task"]] = reply["answer"]["outcome"]
            reply = self.hear()
        if isinstance(reply, dict) and "refused" in reply:
            raise Refused(reply["refused"]["why"])
        return reply

    def memory(self, length):
        """Memory that is shared: its number, and a mapping to read and write."""
        return self.share(length, None)

    def constant(self, content):
        """Memory that holds these bytes for ever; a device to which it was copied keeps the copy."""
        return self.share(len(content), content)

    def share(self, length, content):
        file = os.memfd_create("forebay-accel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(file, length)
            seals, access = F_SEAL_SHRINK | F_SEAL_GROW, mmap.ACCESS_WRITE
            if content is not None:
                written = 0
                while written < length:
                    written += os.pwrite(file, content[written:], written)
                seals, access = seals | F_SEAL_WRITE, mmap.ACCESS_READ
            fcntl.fcntl(file, F_ADD_SEALS, seals)
            self.memories += 1
            self.ask({"share": {"memory": self.memories, "bytes": length}}, [file])
            return self.memories, mmap.mmap(file, length, access=access)
        finally:
            os.close(file)

    def task(self, kernel, buffers, scalars=(), grid=(1, 1, 1), deadline=None, place="best"):
        """A task; `buffers` are (number, mapping, whether it is written). It begins within `deadline`
        seconds, or not at all. `place` is "best", "cpu", or {"device": "opencl:0:0"}."""
        self.tasks += 1
        pieces = [
            {"memory": number, "offset": 0, "length": len(mapping), "write": written}
            for number, mapping, written in buffers
        ]
        task = {"task": self.tasks, "kernel": kernel, "buffers": pieces}
        task |= {"scalars": list(scalars), "grid": list(grid), "place": place}
        if deadline is not None:
            task["deadline_us"] = round(deadline * 1e6)
        return task

    def submit(self, *tasks):
        """Submits tasks together: the numbers by which they are waited for and cancelled."""
        self.send({"submit": tasks})
        return [task["task"] for task in tasks]

    def cancel(self, number):
        """One that did not begin will not; it is waited for all the same."""
        self.send({"cancel": {"task": number}})

    def wait(self, number):
        """How a task ran. Raises Refused of one without a result: "busy", "cancelled", "late", or why."""
        while number not in self.answers:
            answer = self.hear()["answer"]
            self.answers[answer["task"]] = answer["outcome"]
        outcome = self.answers.pop(number)
        if isinstance(outcome, dict) and "done" in outcome:
            return outcome["done"]
        raise Refused(outcome)

    def run(self, *about, **more):
        """Runs one task."""
        [number] = self.submit(self.task(*about, **more))
        return self.wait(number)


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

    halves = worker.constant(b[1][:])
    totals = [worker.memory(4 * count) for _ in range(4)]
    tasks = [
        worker.task("add", [(*a, False), (*halves, False), (*to, True)], [{"u32": count}])
        for to in totals
    ]
    for number in reversed(worker.submit(*tasks)):
        worker.wait(number)
    assert all(to[1][:] == total[1][:] for to in totals)
    print(f"{len(tasks)} tasks together")


if __name__ == "__main__":
    main()
