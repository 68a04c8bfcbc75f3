"""Kill conversions of one checkpoint at given places, one after the other, until one comes to its end.

python -m tests.interrupted_conversion MODEL OUTPUT PLACE...

A place is WHAT:N, where a process kills itself: "chunk:N" when the Nth chunk is written, "flush:N" before the Nth line
of the record, "record:N" in the middle of it, "rename:N" before the Nth file gets another name. Each is a process of
its own, forked from this one, which has imported all but done nothing yet. Prints a line of JSON for each: whether it
was killed, how many bytes came, and the first tensor that was not there yet.
"""

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from clipgguf import convert, partial_file, writer
from clipgguf.partial_file import Partial
from clipgguf.sources.given import bytes_received


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def run(model: str, output: str, what: str, number: int, result: int) -> None:
    """Convert, in a process that dies at a place."""
    counter = itertools.count(1)
    first = 0

    def is_there(kind: str) -> bool:
        return kind == what and next(counter) == number

    write_down, rename, make = Partial._write_down, Path.replace, partial_file.partial_file

    def dying_write_down(self: Partial, beginning: Any) -> None:
        if is_there("flush"):
            die()
        write_down(self, beginning)
        if is_there("record"):
            os.truncate(self._record, self._record.stat().st_size - 9)
            die()

    def dying_rename(self: Path, target: Path) -> Path:
        if is_there("rename"):
            die()
        return rename(self, target)

    def noted(*arguments: Any) -> "Partial | None":
        nonlocal first
        partial = make(*arguments)
        first = 0 if partial is None else partial.beginning.tensors
        return partial

    def progress(done: int, total: int) -> None:
        time.sleep(0.003 if what == "chunk" else 0)  # For what is written down meanwhile.
        if is_there("chunk"):
            die()

    patched: Any = Partial, Path, writer
    patched[0]._write_down, patched[1].replace, patched[2].partial_file = dying_write_down, dying_rename, noted
    convert(model, output, progress=progress, threads=2)
    os.write(result, json.dumps([bytes_received(), first]).encode())


def main(model: str, output: str, *places: str) -> None:
    """Kill at the places, in turn."""
    partial_file.FLUSHED_NBYTES = 1
    for place in places:
        what, _, number = place.partition(":")
        read, write = os.pipe()
        if not (process := os.fork()):
            run(model, output, what, int(number), write)
            os._exit(0)
        os.close(write)
        _, status = os.waitpid(process, 0)
        received, first = json.loads(os.read(read, 99) or "[null, null]")
        os.close(read)
        ended = os.waitstatus_to_exitcode(status)
        sys.stdout.write(json.dumps({"place": place, "code": ended, "received": received, "first": first}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
