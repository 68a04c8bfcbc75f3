"""Tables of positions resized to another grid; that the bytes are torch's is seen by the families that have one."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from clipgguf.planning import PlannedTensor
from clipgguf.resizing import resized
from clipgguf.sources.local import LocalFile
from clipgguf.stream import ChunkStream
from clipgguf.tensor import Computed, View

WIDTH = 24


def table(directory: Path, positions: int, dtype: str = "F32") -> View:
    values = np.random.default_rng(0).standard_normal((1, positions, WIDTH)).astype({"F32": "<f4", "F16": "<f2"}[dtype])
    (directory / "t").write_bytes(values.tobytes())
    return View("t", dtype, values.shape, LocalFile(directory / "t"), 0, values.nbytes)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize(("old", "new"), [(16, 5), (5, 16), (64, 32), (3, 1), (1, 3)])
def test_corners_stay_and_all_else_lies_between(old: int, new: int, dtype: str, tmp_path: Path) -> None:
    view = table(tmp_path, old * old, dtype)
    source = resized("side")(view, view.shape, {"side": new})
    assert isinstance(source, Computed)
    planned = PlannedTensor(source, "t", (1, new * new, WIDTH), GGMLQuantizationType.F32, source.nbytes)
    with ChunkStream([planned], 2) as stream:
        data = b"".join(bytes(chunk.data) for chunk in stream if isinstance(chunk.data, memoryview))
    found = np.frombuffer(data, "<f4").reshape(new, new, WIDTH)
    grid = np.fromfile(tmp_path / "t", {"F32": "<f4", "F16": "<f2"}[dtype]).reshape(old, old, WIDTH).astype(np.float64)
    assert (found[0, 0] == grid[0, 0]).all()
    places = np.linspace(0, old - 1, new)
    columns = np.stack([[np.interp(places, range(old), line[:, c]) for c in range(WIDTH)] for line in grid])
    expected = np.stack([[np.interp(places, range(old), columns[:, c, x]) for c in range(WIDTH)] for x in range(new)])
    assert np.allclose(found, expected.transpose(2, 0, 1), atol=1e-5)


def test_a_grid_of_that_size_is_left_as_it_is(tmp_path: Path) -> None:
    view = table(tmp_path, 16)
    assert resized("side")(view, view.shape, {"side": 4}) is view


def test_what_is_no_square_is_refused(tmp_path: Path) -> None:
    view = table(tmp_path, 15)
    with pytest.raises(ValueError, match="'t' has 15 positions, should be a square number"):
        resized("side")(view, view.shape, {"side": 4})
