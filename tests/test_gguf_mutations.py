"""GGUF headers with bytes changed at random: read or refused, in bounded time and memory."""

import random
import struct
from pathlib import Path

import pytest

from clipgguf import CheckpointError, convert, inspect
from clipgguf.checkpoint.gguf_reader import (
    read_gguf,
)
from clipgguf.sources.local import LocalFile
from tests.gguf_bytes import array, gguf, key, string, tensor, uint32
from tests.llava_checkpoints import Llava, write_hf
from tests.processes import peak_of, taking_at_most
from tests.test_gguf_file import ALIGNMENT, FEW, FUZZ, MEBIBYTES, Q8_0, SCALARS, SECONDS, T


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Change a header as bits rot, as disks fill up, and as somebody would who wants to do harm."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(changed))
        kind = rng.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            number = rng.choice(
                (0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1, len(data), rng.getrandbits(64))
            )
            changed[at : at + 8] = struct.pack("<Q", number)
        elif kind == 2:
            changed[at : at + 4] = struct.pack("<I", rng.choice((*range(14), 2**31, 2**32 - 1)))
        elif kind == 3:
            del changed[at : at + rng.choice((1, 4, 8, 100))]
        elif kind == 4:
            length = rng.choice((1, 8, 50))
            changed[at:at] = changed[at : at + length]
        else:
            del changed[at:]
        if not changed:
            break
    return bytes(changed)


@pytest.mark.parametrize("count", [FEW, pytest.param(FUZZ, marks=pytest.mark.slow)], ids=["few", "many"])
def test_mutations(count: int, tmp_path: Path) -> None:
    real = convert(write_hf(tmp_path / "m", Llava()), tmp_path / "m.gguf").path.read_bytes()
    keys = [key(f"{t.name}", t, struct.pack(f"<{code}", value)) for t, (code, value) in SCALARS.items()]
    keys += [uint32(ALIGNMENT, 64), array("texts", T.STRING, 3, string("ab") * 3), array("n", T.INT16, 4, bytes(8))]
    made = gguf(keys, [tensor("x", (2, 2)), tensor("y", (1, 32), Q8_0, 64)], bytes(128), alignment=64)
    start = read_gguf(LocalFile(tmp_path / "m.gguf")).data_start
    rng = random.Random(20260101)
    path = tmp_path / "x.gguf"
    outcomes = {"read": 0, "refused": 0}

    def read_all() -> None:
        for number in range(count):
            data = mutated(rng, made) if number % 2 else mutated(rng, real[:start]) + real[start:]
            path.write_bytes(data)
            outcome = "read"
            with taking_at_most(SECONDS, (number, data[:5000])):
                try:
                    inspect(path)
                except CheckpointError:
                    outcome = "refused"
            outcomes[outcome] += 1

    assert peak_of(read_all) < MEBIBYTES * 2**20
    assert min(outcomes.values()) > count // 100, outcomes  # The mutations are neither all harmless nor all fatal.
