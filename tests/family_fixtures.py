"""Families' fixtures: tiny checkpoints by names and shapes, and what llama.cpp's own converter makes of them.

A fixture is ``tests/fixtures/families/NAME.json``: the checkpoint's JSON files, its tensors' names and shapes, and of
the reference's files the metadata, and for every tensor its shape, its type by outtype, and the SHA-256 of its bytes
(the first 16 digits) by source dtype and type. The values follow from the names, so that a fixture needs none.
``tests/make_families.py`` makes them.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipgguf.options import Outtype
from tests.json_files import write_json
from tests.weights import Shapes, values, write_weights

FIXTURES = Path(__file__).parent / "fixtures" / "families"
DTYPES = ("F32", "F16", "BF16")
OUTTYPES: tuple[Outtype, ...] = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class Expected:
    """A tensor of the reference's files: its row-major shape, its type by outtype, and hashes by dtype and type.

    Where last bits depend on who computes them, some of the values by dtype instead of hashes, and by how much they may
    differ.
    """

    shape: tuple[int, ...]
    types: dict[str, str]
    hashes: dict[str, str]
    sample: dict[str, list[float]] | None = None
    within: float = 0

    @classmethod
    def read(cls, record: dict[str, Any]) -> "Expected":
        """Read a fixture's record."""
        types = dict(zip(OUTTYPES, record["types"].split(), strict=True))
        some = record.get("sample", {})
        return cls(tuple(record["shape"]), types, record["hashes"], some.get("values"), some.get("within", 0))

    def agrees(self, data: NDArray[Any], dtype: str, kind: str) -> bool:
        """Return whether a tensor of a file made of a checkpoint of a dtype has the right bytes, or values."""
        if self.sample is None:
            return digest(data.tobytes()) == self.hashes[f"{dtype} {kind}"]
        return bool(np.allclose(sample(data), self.sample[dtype], rtol=0, atol=self.within))


@dataclass(frozen=True)
class Fixture:
    """One model of a family: a tiny checkpoint, and what the reference makes of it.

    Files and tensors of a folder inside the model's have "FOLDER/" before their names. ``unrunnable`` says why
    llama.cpp does not run it, where that is its own fault; ``refused`` where it wants another file, as ``inspect``
    says.
    """

    name: str
    files: dict[str, Any]
    shapes: Shapes
    metadata: dict[str, Any]
    tensors: dict[str, Expected]
    unrunnable: str = ""
    refused: str = ""

    @property
    def module(self) -> str:
        """The module of the family in clipgguf.families."""
        return self.name.partition("--")[0]

    @property
    def config_name(self) -> str:
        """The file with its configuration; Mistral's own layout has no config.json, and Pocket TTS's has nothing."""
        return next((name for name in ("config.json", "params.json") if name in self.files), "")

    @classmethod
    def read(cls, path: Path) -> "Fixture":
        """Read a fixture."""
        values = json.loads(path.read_text())
        return cls(
            path.stem,
            values["files"],
            {name: tuple(shape) for name, shape in values["shapes"].items()},
            values.get("metadata", {}),
            {name: Expected.read(record) for name, record in values.get("tensors", {}).items()},
            **values.get("client", {}),
        )

    def write(self, directory: Path, dtype: str = "F32", shards: int = 1, *, reverse: bool = False) -> Path:
        """Write the checkpoint: its JSON files and its weights, dealt out over shards in turn; a folder has one."""
        for name, value in self.files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            write_json(directory / name, value)
        stem = "consolidated" if self.config_name == "params.json" else "model"
        for folder, shapes in by_folder(self.shapes).items():
            arrays = {name: weights(f"{folder}{name}", shape) for name, shape in shapes.items()}
            own = 1 if folder else shards
            write_weights(directory / folder, arrays, dtype=dtype, shards=own, reverse=reverse, stem=stem)
        return directory


@dataclass(frozen=True)
class Written:
    """A fixture's checkpoint in float32, in one file, and what it is converted to; nobody may change them."""

    model: Path
    file: Path

    def copy(self, directory: Path) -> Path:
        """Return a model whose JSON files may be changed, and whose weights are the same ones."""

        def place(source: str, target: str) -> None:
            (os.link if source.endswith(".safetensors") else shutil.copyfile)(source, target)

        shutil.copytree(self.model, directory, copy_function=place)
        return directory


def by_folder(shapes: Shapes) -> dict[str, Shapes]:
    """Return the shapes of tensors by the folder that they lie in, "FOLDER/" or empty, by their own names."""
    found: dict[str, dict[str, tuple[int, ...]]] = {"": {}}
    for name, shape in shapes.items():
        folder, slash, own = name.rpartition("/")
        found.setdefault(folder + slash, {})[own] = tuple(shape)
    return dict(found)


def sample(data: NDArray[Any]) -> list[float]:
    """Return some of the values of a float32 tensor: 64, from the first to the last."""
    values = data.reshape(-1)
    return [float(values[i]) for i in np.linspace(0, len(values) - 1, 64).astype(int)]


# Write a fixture, once in a session; the pytest fixture ``written``.
Write = Callable[[Fixture], Written]


def rename(model: Path, changes: Sequence[tuple[str, str]], ones: Sequence[tuple[str, int]] = ()) -> None:
    """Give the tensors of a model's only shard other names, and leave their values as they are.

    Those of a pattern in ``ones`` get so many axes of length 1 at their ends.
    """
    (path,) = model.glob("*.safetensors")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, value in header.items():
        value.get("shape", []).extend(1 for pattern, count in ones if re.search(pattern, name) for _ in range(count))
    renamed = json.dumps({changed(name, changes): value for name, value in header.items()}).encode()
    path.write_bytes(len(renamed).to_bytes(8, "little") + renamed + data[8 + length :])


def changed(name: str, changes: Sequence[tuple[str, str]]) -> str:
    """Return a name with regular expressions replaced."""
    for pattern, replacement in changes:
        name = re.sub(pattern, replacement, name)
    return name


# The same model is written several times in a row.
@lru_cache(maxsize=512)
def weights(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a tensor's values, which follow from its name; small, so that a model of many blocks stays finite.

    Nobody may change them in place.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    count = int(np.prod(shape, dtype=np.int64))
    flat = np.concatenate([*values(seed, count), np.empty(0, np.float32)])
    array = np.asarray((flat.reshape(shape) * np.float32(0.25)).astype(np.float32))
    if name.endswith(("running_var", "cluster_usage")):
        array = np.abs(array)
    if name.endswith(("_max", "_min")):  # Bounds, which should leave something.
        array = np.asarray((np.abs(array) + 4) * (1 if name.endswith("_max") else -1))
    array.flags.writeable = False
    return array


def digest(data: bytes) -> str:
    """Return what a fixture has of a tensor's bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


@cache
def fixtures() -> tuple[Fixture, ...]:
    """Return all fixtures."""
    return tuple(map(Fixture.read, sorted(FIXTURES.glob("*.json"))))


# One of each way of making a file; what other fixtures add to tests of what is wrong is not worth its time every time.
REPRESENTATIVES = ("gemma3n", "granite_speech", "minicpmv", "pixtral", "qwen3_vl")


def mostly_slow() -> list[Any]:
    """Return all fixtures as parameters of a test that is slow but for the representatives."""
    return [pytest.param(f, marks=() if f.name in REPRESENTATIVES else pytest.mark.slow) for f in fixtures()]


def named(value: Any) -> str:
    """Return what a test's name has of a parameter."""
    return value.name if isinstance(value, Fixture) else str(value)
