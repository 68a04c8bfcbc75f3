"""The line of the tests' servers, and the rows of the benchmarks that are behind it."""

import importlib.util
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.line import Line
from tests.test_benchmarks import benchmarks, needs_shell


@pytest.mark.slow
@needs_shell
@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="needs the extra hub")
def test_rows_behind_a_line(tmp_path: Path) -> None:
    saved, work_dir = tmp_path / "figures.json", tmp_path / "work"
    done = benchmarks("over 100 MB/s", "--quick", "--work-dir", work_dir, "--json", saved)
    assert done.returncode == 0, done.stderr
    (far, line_alone, loaded_first), (far_by_tls,) = (
        row["programs"] for row in json.loads(saved.read_text(encoding="utf-8"))["rows"]
    )
    assert far["output_bytes"] > 0
    assert far["sha256"] == far_by_tls["sha256"]
    assert loaded_first["output_bytes"] == pytest.approx(far["output_bytes"], abs=1000), "its general.name is another"
    assert line_alone["seconds"][0] >= line_alone["input_bytes"] / 100e6
    assert [path.name for path in work_dir.iterdir()] == ["far"]


def test_a_line_has_its_rate() -> None:
    line, started = Line(bandwidth=1e6), time.monotonic()
    with ThreadPoolExecutor(3) as senders:
        list(senders.map(line.take, [10_000] * 30))
    assert time.monotonic() - started > 0.27
