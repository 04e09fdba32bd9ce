"""A client of `forebay accel-worker` for Python 3.9 and later; needs nothing but Python.

    python3 forebay_accel.py /run/web/accel.sock
"""

import contextlib
import fcntl
import json
import mmap
import os
import socket
import struct
import sys

F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1033, 2, 4, 8
MESSAGE_MAX = 160 * 1024
# What a clock holds of seconds, about.
DEADLINE_MAX = 1e13
# The longest reason why a kernel failed that is told, in letters.
WHY_MAX = 1000
# What buffers consist of, as memoryviews have it.
FORMATS = {"u8": "B", "u32": "I", "i32": "i", "u64": "Q", "f32": "f", "f64": "d"}


class Refused(Exception):
    """What the worker says when it does not do something."""


def f32(value):
    """A number of a task: floats travel as their bits."""
    return {"f32_bits": struct.unpack("=I", struct.pack("=f", value))[0]}


def f64(value):
    """As f32."""
    return {"f64_bits": struct.unpack("=Q", struct.pack("=d", value))[0]}


def value_of(scalar):
    """A number of a task as Python has it."""
    [(kind, value)] = scalar.items()
    if kind == "f32_bits":
        return struct.unpack("=f", struct.pack("=I", value))[0]
    if kind == "f64_bits":
        return struct.unpack("=d", struct.pack("=Q", value))[0]
    return value


class Worker:
    """A connection, for one thread. Each task that is submitted is waited for once, in any order; kernels
    of this program's own are computed meanwhile, by whoever waits or registers."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(path)
        self.memories = 0
        self.mappings = {}
        self.tasks = 0
        self.kernels = {}
        self.pending = {}
        self.answers = {}
        self.ask({"hello": {"version": 1}})

    def send(self, request, descriptors=()):
        message = json.dumps(request).encode()
        if len(message) > MESSAGE_MAX:
            raise ValueError(
                f"a message of {len(message)} bytes is longer than {MESSAGE_MAX}; submit fewer tasks at once"
            )
        socket.send_fds(self.socket, [message], list(descriptors))

    def hear(self):
        """Takes in one message: a reply, or None where it was something else."""
        message = self.socket.recv(MESSAGE_MAX)
        if not message:
            raise ConnectionError("the worker is gone; connect again")
        reply = json.loads(message)
        if isinstance(reply, dict) and "refused" in reply:
            raise Refused(reply["refused"]["why"])
        if isinstance(reply, dict) and "answer" in reply:
            answer = reply["answer"]
            self.pending.pop(answer["task"], None)
            self.answers[answer["task"]] = answer["outcome"]
        elif isinstance(reply, dict) and "compute" in reply:
            self.compute(**reply["compute"])
        else:
            return reply
        return None

    def ask(self, request, descriptors=()):
        self.send(request, descriptors)
        reply = self.hear()
        while reply is None:
            reply = self.hear()
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
            mapping = mmap.mmap(file, length, access=access)
            self.memories += 1
            self.ask({"share": {"memory": self.memories, "bytes": length}}, [file])
            self.mappings[self.memories] = mapping
            return self.memories, mapping
        finally:
            os.close(file)

    def forget(self, memory):
        """Gives memory back."""
        number, mapping = memory
        self.ask({"forget": {"memory": number}})
        del self.mappings[number]
        mapping.close()

    def register(
        self, name, buffers, scalars, compute, per_item=None, tolerance="exact", **sources
    ):
        """Registers a kernel of this program's own: what devices made of its sources, by their ids; None
        of those that compute it, else why not.

        `buffers` are (name, "read", "write" or "read_write", "u8", "u32", "i32", "u64", "f32" or "f64"), `scalars`
        are (name, type). A task has at least `per_item` elements of each buffer for each item of its grid, one
        where nothing is said. `sources` are opencl=, cuda=, ptx=, wgsl= (texts), spirv=, opencl_binary= (files).
        `compute(buffers, scalars, grid)` is the kernel on the CPU, in this process: the buffers are
        memoryviews of their elements, the scalars are numbers.
        """
        parameters = [
            {"name": name, "access": access, "element": element}
            for name, access, element in buffers
        ]
        numbers = [{"name": name, "type": kind} for name, kind in scalars]
        definition = {
            "name": name,
            "signature": {"buffers": parameters, "scalars": numbers},
            "per_item": list(per_item or [1] * len(parameters)),
            "sources": sources,
            "tolerance": tolerance,
        }
        builds = self.ask({"register": definition})["registered"]["builds"]
        self.kernels[name] = (compute, parameters)
        told = {}
        for build in builds:
            error = build["error"]
            if error is not None:
                [(kind, why)] = error.items()
                error = f"{kind}: {why}"
            told[build["device"]] = error
        return told

    def compute(self, ticket, task):
        """The worker asks for a task to be computed here. Whatever goes wrong is its answer."""
        error = None
        try:
            about = self.pending[task]
            function, parameters = self.kernels[about["kernel"]]
            with contextlib.ExitStack() as views:
                buffers = []
                for piece, parameter in zip(about["buffers"], parameters):
                    start, end = piece["offset"], piece["offset"] + piece["length"]
                    whole = views.enter_context(memoryview(self.mappings[piece["memory"]]))
                    part = views.enter_context(whole[start:end])
                    if parameter["access"] == "read":
                        part = views.enter_context(part.toreadonly())
                    elements = part.cast("B").cast(FORMATS[parameter["element"]])
                    buffers.append(views.enter_context(elements))
                function(buffers, [value_of(scalar) for scalar in about["scalars"]], about["grid"])
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"[:WHY_MAX]
        self.send({"computed": {"ticket": ticket, "error": error}})

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
            if not 0 <= deadline <= DEADLINE_MAX:
                raise ValueError(
                    f"a deadline of {deadline} s is none; name one from 0 to {DEADLINE_MAX:g}"
                )
            task["deadline_us"] = round(deadline * 1e6)
        return task

    def submit(self, *tasks):
        """Submits tasks together: the numbers by which they are waited for and cancelled."""
        self.send({"submit": tasks})
        self.pending |= {task["task"]: task for task in tasks}
        return [task["task"] for task in tasks]

    def cancel(self, number):
        """One that did not begin will not; it is waited for all the same."""
        self.send({"cancel": {"task": number}})

    def wait(self, number):
        """How a task ran. Raises Refused of one without a result: "busy", "cancelled", "late", or why."""
        if number not in self.answers and number not in self.pending:
            raise ValueError(f"no task {number} is waited for; each is waited for once")
        while number not in self.answers:
            self.hear()
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
