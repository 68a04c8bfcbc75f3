"""Values on which encoders may differ: halfway cases, zeros of both signs, subnormals, scales at the edges, NaNs."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
_Blocks = NDArray[np.float32]


def float32_patterns() -> NDArray[np.float32]:
    """Every sign, exponent and leading seven bits, with the low bits that decide about rounding."""
    low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x2FFF, 0x3000, 0x3001, 0x8000, 0xFFFF], np.uint32)
    return ((np.arange(1 << 16, dtype=np.uint32)[:, None] << 16) | low).reshape(-1).view(np.float32)


def _signs(random: np.random.Generator, count: int) -> Any:
    return random.choice(np.array([-1, 1], np.float32), (count, BLOCK))


def _scaled(random: np.random.Generator, count: int) -> Any:
    """Weights, each block at a scale of its own, from subnormal ones to those that are too large for float16."""
    return random.standard_normal((count, BLOCK)) * 2.0 ** random.uniform(-149, 24, (count, 1))


def _halves(random: np.random.Generator, count: int) -> Any:
    """Multiples of half a scale, and their neighbours: the quants are halfway, or nearly so."""
    steps = random.choice(np.array([7.5, 8, 15, 15.5, 16, 31, 127], np.float32), (count, 1))
    # The inverses of some scales are exact, so that the products have the neighbours' bits. Small quants are in the
    # majority: beside 0.5, other bits decide than beside 126.5.
    exponent = random.uniform(-20, 4, (count, 1))
    scale = 2.0 ** np.where(random.random((count, 1)) < 0.5, exponent, np.round(exponent)).astype(np.float32)
    blocks = np.round(random.uniform(-1, 1, (count, BLOCK)) ** 5 * 2 * steps).astype(np.float32) / 2 * scale
    bits = blocks.view(np.int32)
    bits += random.integers(-2, 3, bits.shape, np.int32) * (blocks != 0)  # Below 0 are NaNs.
    blocks[:, 0] = steps[:, 0] * scale[:, 0]
    blocks = np.where(random.random((count, 1)) < 0.5, blocks, abs(blocks))  # Whose least is 0.
    return random.permuted(blocks, axis=1)


def _few(random: np.random.Generator, count: int) -> Any:
    """Few different values: blocks that are equal throughout, largest magnitudes of both signs, zeros of both signs."""
    values = np.array([0, -0.0, 1, -1, 1e-45, -1e-45, 1e-38, 3e-5, 0.1, -0.1, 32767.9, -32768, 65504], np.float32)
    picked = random.choice(values, (count, 3))
    return np.take_along_axis(picked, random.integers(0, 3, (count, BLOCK)), axis=1)


def _zeros(random: np.random.Generator, count: int) -> Any:
    """Zeros of both signs, and among them weights of one sign, or none."""
    weights = abs(random.standard_normal((count, BLOCK))) * random.choice([-1, 0, 1], (count, 1))
    is_zero = random.random((count, BLOCK)) < random.random((count, 1))
    return np.where(is_zero, np.copysign(0, _signs(random, count)), weights)


def _tiny(random: np.random.Generator, count: int) -> Any:
    """Scales whose inverse is just finite, or just not, or that are themselves 0."""
    return random.integers(-9, 10, (count, BLOCK)) * 2.0 ** random.integers(-149, -118, (count, 1))


def _close(random: np.random.Generator, count: int) -> Any:
    """Values that differ in their last bits alone."""
    bits = random.integers(0x00000001, 0x47010000, (count, 1)) + random.integers(0, 40, (count, BLOCK))
    return bits.astype(np.uint32).view(np.float32) * random.choice(np.array([-1, 1], np.float32), (count, 1))


def _any_bits(random: np.random.Generator, count: int) -> Any:
    return random.integers(0, 1 << 32, (count, BLOCK), np.uint32).view(np.float32)


def _moderate_bits(random: np.random.Generator, count: int) -> Any:
    """Every exponent that is not left to the careful path."""
    return random.integers(0, 0x47000000, (count, BLOCK), np.uint32).view(np.float32) * _signs(random, count)


KINDS: tuple[Callable[[np.random.Generator, int], Any], ...] = (
    _scaled, _halves, _few, _zeros, _tiny, _close, _any_bits, _moderate_bits
)  # fmt: skip


def hard_blocks(seed: int, count: int) -> NDArray[np.float32]:
    """Return ``count`` times 32 values, a few hundred blocks of each kind in turn."""
    random = np.random.default_rng(seed)
    parts: list[_Blocks] = []
    while sum(map(len, parts)) < count:
        kind = KINDS[len(parts) % len(KINDS)]
        with np.errstate(all="ignore"):
            parts.append(np.asarray(kind(random, int(random.integers(1, 400)))).astype(np.float32))
    return np.concatenate(parts)[:count].reshape(-1)
