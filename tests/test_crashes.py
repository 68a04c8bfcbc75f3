"""Whatever ends a conversion: the old file is intact, or the new one complete, and nothing stays behind."""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipgguf import Options, OutputError, convert
from clipgguf.options import Outtype
from clipgguf.output_file import TEMPORARY_NAME, replacing
from tests.checkpoints import Clip, Text, Vision, write_model
from tests.json_files import edit_json
from tests.processes import HANGS_AFTER, command, run_process, taking_at_most, uncovered
from tests.weights import write_sparse_safetensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")

resource = pytest.importorskip("resource")

OLD = b"an older file"
# 160 MB of which 80 MB are written: enough for the disk to be told to begin early, and for moments of every kind.
LARGE = Clip(Text(64, 64, 1, 4, vocab_size=99, max_position_embeddings=16), Vision(1024, 4096, 3, 16, 28, 14), 24)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("large")
    yield write_model(directory / "m", LARGE)
    shutil.rmtree(directory)


class Target:
    """An output directory with an older file, and what a conversion that is left alone makes of it."""

    def __init__(self, model: Path, directory: Path) -> None:
        self.file = directory / "model-f16.gguf"
        self._command = command(model, "-o", directory, "-q")
        directory.mkdir()
        started = time.monotonic()
        assert self.start().wait(timeout=HANGS_AFTER) == 0
        self.seconds = time.monotonic() - started
        self._complete = digest(self.file)
        self.file.write_bytes(OLD)

    def start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self._command, env=uncovered(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end_at(self, moment: float, number: int) -> int:
        """Start a conversion, send it a signal after so large a part of its time, and return its exit code.

        What the machine does besides comes and goes, and with it the time. So it is measured again by every conversion
        that ends before its signal, and until then every signal is sent a little later than the one before.
        """
        started = time.monotonic()
        process = self.start()
        try:
            code = process.wait(timeout=moment * self.seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            self.seconds *= 1.05
            return process.wait(timeout=HANGS_AFTER)
        self.seconds = time.monotonic() - started
        return code

    def is_old_or_complete(self) -> bool:
        """Tell whether the file is one or the other, and make it the older one again."""
        fine = self.file.read_bytes() == OLD or digest(self.file) == self._complete
        self.file.write_bytes(OLD)
        return fine

    def others(self) -> list[str]:
        return [path.name for path in self.file.parent.iterdir() if path != self.file]


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).digest()


@pytest.mark.slow
def test_kill_at_any_moment(large: Path, tmp_path: Path) -> None:
    target = Target(large, tmp_path / "out")
    moments = random.Random(1)
    kills = left_behind = 0
    while kills < 100 or left_behind <= 10:
        kills += 1
        assert kills <= 1_000
        target.end_at(moments.uniform(0.1, 1.1), signal.SIGKILL)
        assert target.is_old_or_complete()
        others = target.others()
        # What the killed one before left, this one has removed, unless it was killed too early.
        assert len(others) <= 2
        assert all(TEMPORARY_NAME.fullmatch(name) for name in others)
        left_behind += bool(others)
    assert target.start().wait(timeout=HANGS_AFTER) == 0
    assert target.others() == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_at_any_moment(number: int, large: Path, tmp_path: Path) -> None:
    target = Target(large, tmp_path / "out")
    moments = random.Random(number)
    codes: list[int] = []
    while len(codes) < 20 or codes.count(128 + number) < 5:
        assert len(codes) <= 200
        codes.append(target.end_at(moments.uniform(0.1, 1.1), number))
        assert target.is_old_or_complete()
        assert target.others() == []
    # Before Python runs our code, the system's own way of ending applies.
    assert set(codes) <= {0, 128 + number, -number}


def test_children_can_be_interrupted_whatever_ran_the_tests() -> None:
    # As a shell starts what ends in "&", and nohup what it runs.
    code = (
        "import signal, subprocess, sys; from tests.processes import interruptible_children\n"
        "numbers = signal.SIGINT, signal.SIGHUP, signal.SIGTERM\n"
        "for number in numbers: signal.signal(number, signal.SIG_IGN)\n"
        "with interruptible_children():\n"
        "    for number in numbers:\n"
        "        child = subprocess.Popen([sys.executable, '-c', 'import time; print(flush=True); time.sleep(60)'],\n"
        "                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)\n"
        "        child.stdout.readline()\n"
        "        signal.raise_signal(number)\n"  # The tests themselves go on.
        "        child.send_signal(number)\n"
        "        assert child.wait() == -number\n"
        "assert all(signal.getsignal(number) == signal.SIG_IGN for number in numbers)\n"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parents[1], env=uncovered(), check=True
    )


@pytest.mark.slow
def test_two_at_once(large: Path, tmp_path: Path) -> None:
    target = Target(large, tmp_path / "out")
    for _ in range(5):
        both = [target.start(), target.start()]
        assert [process.wait(timeout=HANGS_AFTER) for process in both] == [0, 0]
        assert target.file.stat().st_size > len(OLD)
        assert target.is_old_or_complete()
        assert target.others() == []


def test_leftovers_are_told_from_what_is_in_use_and_from_other_files(large: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    names = [f".clipgguf-{number:016x}.tmp" for number in range(4)]
    left, in_use, link, directory = (out / name for name in names)
    left.write_bytes(b"left behind")
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"")
    directory.mkdir()
    (out / ".clipgguf-notes.tmp").write_bytes(b"somebody's")
    with in_use.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        convert(large, out, options=Options(text_only=True))
    kept = {in_use.name, link.name, directory.name, ".clipgguf-notes.tmp", "text-model-f16.gguf"}
    assert {path.name for path in out.iterdir()} == kept
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("dtype", ["F32", pytest.param("F16", marks=pytest.mark.slow)])  # F16 is copied another way.
def test_disk_that_fills_up(dtype: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-f16.gguf").write_bytes(OLD)
    model = write_model(tmp_path / "m", LARGE, dtype=dtype)
    limit = 70 << 20
    result = run_process(model, "-o", out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 1
    message = f"clipgguf: error: {out / 'model-f16.gguf'}: cannot be written: File too large\n"
    assert result.stderr.endswith(message)
    assert result.stderr.count("\n") == 1 or "note:" in result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"model-f16.gguf": OLD}


def test_too_little_room_is_said_at_once(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    rows = free // (2 * 1024) + 1_000_000
    clip = Clip(Text(1024, 64, 1, 4, vocab_size=99, max_position_embeddings=16), Vision(48, 96, 1, 4, 28, 14), 24)
    model = write_sparse(tmp_path / "m", clip, rows)
    message = r"model-f16\.gguf: needs [\d,]+ bytes, its disk has [\d,]+ free"
    with taking_at_most(5), pytest.raises(OutputError, match=message):
        convert(model, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def write_sparse(directory: Path, clip: Clip, rows: int) -> Path:
    """Write a model whose token embedding has so many rows, and whose file has a hole in their place."""
    write_model(directory, clip)
    shapes = {n: (rows, *s[1:]) if n.endswith("token_embedding.weight") else s for n, s in clip.shapes().items()}
    try:
        write_sparse_safetensors(directory / "model.safetensors", shapes, "F16")
    except OSError as e:
        pytest.skip(f"no sparse file can be larger than the disk here: {e}")

    def set_rows(config: dict[str, dict[str, int]]) -> None:
        config["text_config"]["vocab_size"] = rows

    edit_json(directory / "config.json", set_rows)
    return directory


def test_directory_that_may_not_be_written(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    # Not even root may make a file in /proc.
    for directory in [Path("/proc"), Path("/proc/new")] + ([] if os.geteuid() == 0 else [out]):
        with pytest.raises(OutputError, match=r"model-f16\.gguf: cannot be written: "):
            convert(large, directory)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("what", ["removed", "moved"])
def test_output_directory_that_vanishes(what: str, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def vanish(done: int, total: int) -> None:
        if out.exists():
            if what == "removed":
                shutil.rmtree(out)
            else:
                out.rename(tmp_path / "moved")

    with pytest.raises(OutputError, match=r"out/model-f16\.gguf: cannot be written: No such file or directory"):
        convert(large, out, progress=vanish)
    assert not out.exists()
    # It went with its directory; the next conversion into that one removes it.
    moved = tmp_path / "moved"
    if what == "moved":
        assert [bool(TEMPORARY_NAME.fullmatch(path.name)) for path in moved.iterdir()] == [True]
        assert convert(large, moved, options=Options(text_only=True)).path.parent == moved
        assert [path.name for path in moved.iterdir()] == ["text-model-f16.gguf"]


# Truncates the source as soon as something of it is written.
TRUNCATE = """
import os, sys
from clipgguf import CheckpointError, Options, convert
model, out, outtype = sys.argv[1:]
path = model + "/model.safetensors"
try:
    convert(model, out, Options(outtype=outtype), progress=lambda *_: os.truncate(path, os.stat(path).st_size // 2))
except CheckpointError as e:
    sys.exit(str(e))
"""


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_source_that_becomes_shorter(dtype: str, outtype: Outtype, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", LARGE, dtype=dtype)
    out = tmp_path / "out"
    out.mkdir()
    (out / f"model-{outtype}.gguf").write_bytes(OLD)
    result = subprocess.run(
        [sys.executable, "-c", TRUNCATE, str(model), str(out), outtype], capture_output=True, text=True, env=uncovered()
    )
    assert (out / f"model-{outtype}.gguf").read_bytes() == OLD
    if dtype == "F32" and outtype == "f16" and result.returncode == -getattr(signal, "SIGBUS", 0):
        # Encoded from where it is mapped, it was truncated there at the same moment: see SECURITY.md.
        return
    assert result.returncode == 1, result.stderr
    message = r"m/model\.safetensors: bytes [\d,]+ to [\d,]+ cannot be read: the file has become shorter"
    assert re.search(message, result.stderr)
    assert [path.name for path in out.iterdir()] == [f"model-{outtype}.gguf"]


@pytest.mark.slow
def test_nobody_takes_a_file_that_is_being_made_for_a_leftover(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from clipgguf.output_file import remove_leftovers\n"
    code += "print(flush=True)\nwhile True: remove_leftovers(Path(sys.argv[1]))"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=uncovered(), stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    try:
        for number in range(2_000):
            with replacing(tmp_path / "file", 0) as temporary:
                assert temporary.exists()
                temporary.write_bytes(b"%d" % number)
            assert (tmp_path / "file").read_bytes() == b"%d" % number
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
