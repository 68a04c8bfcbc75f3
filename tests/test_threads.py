"""Threads: never more than is sensible, and as many as the system gives."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clipgguf import convert, plan, verify
from clipgguf.stream import ChunkStream
from clipgguf.workers import MOST_ASKED_FOR, MOST_THREADS, Workers, thread_count
from clipgguf.writer import write_plan
from tests.checkpoints import Clip, Text, Vision, write_model
from tests.processes import MIB, peak_rss

# Some 20 MB, of which every layer of a file in float16 is converted.
CLIP = Clip(Text(32, 64, 1, 4, vocab_size=99, max_position_embeddings=16), Vision(512, 2048, 2, 4, 28, 14), 24)


def test_how_many_threads() -> None:
    assert [thread_count(threads) for threads in (1, 8, 64, 65, 2000, 10**30)] == [1, 8, *[MOST_ASKED_FOR] * 4]
    assert 1 <= thread_count(None) <= MOST_THREADS
    with pytest.raises(ValueError, match="threads is 0, should be at least 1"):
        thread_count(0)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
def test_many_threads_take_little_memory(model: Path, tmp_path: Path) -> None:
    large = write_model(tmp_path / "large", CLIP)
    for directory, most in ((model, 80), (large, 256)):
        assert peak_rss("-m", "clipgguf", directory, "-o", tmp_path / "a.gguf", "--threads", 2000) <= most * MIB
        assert peak_rss("-m", "clipgguf", "verify", tmp_path / "a.gguf", directory, "--threads", 2000) <= most * MIB


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the system start no more than so many threads, as where their number is limited."""
    start = threading.Thread.start

    def limit(most: int) -> None:
        started: list[threading.Thread] = []

        def start_or_fail(thread: threading.Thread) -> None:
            if len(started) >= most:
                raise RuntimeError("can't start new thread")
            started.append(thread)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_fail)

    return limit


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_a_limit_on_threads_changes_nothing(most: int, only: Callable[[int], None], tmp_path: Path) -> None:
    model = write_model(tmp_path / "large", CLIP)
    expected = convert(model, tmp_path / "a").path.read_bytes()
    only(most)
    path = convert(model, tmp_path / "b", threads=4).path
    assert path.read_bytes() == expected
    only(most)
    assert verify(path, model, threads=4).agrees


@pytest.mark.parametrize("most", [0, 1])
def test_errors_of_what_no_thread_could_do(most: int, only: Callable[[int], None]) -> None:
    only(most)
    workers = Workers(2, "test")
    futures = [workers.submit(lambda n: 1 // n, n) for n in (1, 0, 1)]
    assert [type(future.exception(10)) for future in futures] == [type(None), ZeroDivisionError, type(None)]
    workers.shutdown()


def test_a_sources_error_with_and_without_threads(only: Callable[[int], None], model: Path, tmp_path: Path) -> None:
    planned = plan(model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for most in (4, 0):
        only(most)
        with pytest.raises(Exception, match="its header asks for"):
            write_plan(planned, tmp_path / "a.gguf")
        assert not (tmp_path / "a.gguf").exists()


def test_threads_that_find_nothing_to_do_are_not_made(model: Path) -> None:
    planned = plan(model)
    with ChunkStream(planned.tensors, 64) as stream:
        assert sum(chunk.nbytes for chunk in stream) == planned.bytes_out
        assert stream._threads == MOST_THREADS
