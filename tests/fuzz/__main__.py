"""Run inputs of one target in a process of its own, whose memory is limited."""

import argparse
import contextlib
import faulthandler
import json
import random
import shutil
import sys
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from clipgguf.errors import ClipGGUFError, UsageError
from tests.fuzz.targets import TARGETS, Target
from tests.processes import HANGS_AFTER

MOST_SECONDS = 2.0  # Of processor time.
MOST_MEMORY = 256 << 20


@dataclass(frozen=True)
class Finding:
    """An input that did not end as it should, where it is kept, and a traceback or what else there is to say."""

    target: str
    seed: int
    number: int
    kept: str
    what: str


def limit_memory() -> None:
    """Allow the process so much more memory than it has now, where the system can."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    # Private memory alone: a mapped file takes none, and threads reserve more of the address space than they use.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now = int(status.partition("VmData:")[2].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (now + MOST_MEMORY, now + MOST_MEMORY))


def attack(target: Target, directory: Path, chance: random.Random) -> str | None:
    """Run what is in the directory once; return what is wrong with how it ended."""
    output = directory / "output"
    state = chance.getstate()
    for attempt in (1, 2):
        chance.setstate(state)
        started = time.process_time()
        try:
            target.attack(directory, output, chance)
        except ClipGGUFError as e:
            if not e.problems or not all(e.problems):
                return "an error without a word"
            if any(len(problem.splitlines()) > 1 for problem in e.problems):
                return f"a problem of several lines: {e.problems}"[:5000]
        except UsageError:  # The input has become a model to which an option does not apply.
            pass
        except Exception:
            return traceback.format_exc()[-5000:]
        finally:
            shutil.rmtree(output, ignore_errors=True)
        seconds = time.process_time() - started
        if seconds < MOST_SECONDS:
            break
        # Once may have been the machine's other work.
        if attempt == 2:
            return f"takes {seconds:.1f} s, twice"
    return None


def run(target: Target, directory: Path, seed: int, numbers: range) -> list[Finding]:
    """Build a target and run so many inputs; those that are findings are kept beside the directory."""
    target.build(directory)
    sound = {name: (directory / name).read_bytes() for name in target.files}
    if problem := attack(target, directory, random.Random(0)):
        raise AssertionError(problem)
    limit_memory()
    findings: list[Finding] = []
    for number in numbers:
        chance = random.Random(f"{seed} {target.name} {number}")
        names = chance.sample(target.files, 1 if chance.random() < 0.9 else len(target.files))
        for name in names:
            (directory / name).write_bytes(target.mutate(name, sound[name], chance))
        # What is endless ends the process with a traceback, and is left behind.
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        problem = attack(target, directory, chance)
        faulthandler.cancel_dump_traceback_later()
        if problem is not None:
            kept = directory.parent / f"{target.name}-{seed}-{number}"
            shutil.copytree(directory, kept, dirs_exist_ok=True)
            findings.append(Finding(target.name, seed, number, str(kept), problem))
        for name in names:
            (directory / name).write_bytes(sound[name])
    return findings


def main() -> None:
    """Run the command line; findings go to standard output as JSON, one a line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("directory", type=Path, help="where inputs are made, and kept if they are findings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    warnings.simplefilter("error")
    numbers = range(options.first, options.first + options.count)
    directory = options.directory / options.target
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    for finding in run(TARGETS[options.target], directory, options.seed, numbers):
        sys.stdout.write(json.dumps(asdict(finding)) + "\n")


if __name__ == "__main__":
    main()
