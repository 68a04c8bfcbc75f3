"""Pictures and sounds to ask llama.cpp about, as files and as a request has them."""

import base64
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]


def random_pixels(width: int, height: int, seed: int = 0) -> UInt8Array:
    """A noise image, (height, width, 3). At exactly the tower's image size llama.cpp does not resample it."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_bytes(pixels: UInt8Array) -> bytes:
    """A PNG file of (height, width, 3) RGB pixels: one IDAT chunk, no filters (W3C PNG, third edition)."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def image(pixels: UInt8Array | None) -> dict[str, Any]:
    """What a request has of an image."""
    image = png_bytes(random_pixels(56, 56) if pixels is None else pixels)
    url = "data:image/png;base64," + base64.b64encode(image).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}


def sound(seconds: float = 2.0, rate: int = 16000) -> dict[str, Any]:
    """What a request has of a sound, a note in noise: a WAV file of one channel of 16 bits."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(time.size)
    samples = np.clip((0.3 * np.sin(2 * np.pi * 440 * time) + 0.05 * noise) * 32767, -32768, 32767).astype("<i2")
    data = samples.tobytes()
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    file = (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data
    )
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(file).decode("ascii"), "format": "wav"}}
