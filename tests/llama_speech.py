"""The real llama.cpp speaks: from a file that generates sound, codes of a frame and the sound of some codes.

The wheel's server has no call for it, but the library inside has, ``mtmd_gen_audio_process`` of ``tools/mtmd/mtmd.h``.
It is called in a process of its own, which runs this module as a script: what llama.cpp asserts aborts it.
"""

import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What it gives of a frame, and how many of them are decoded.
CODES, FRAMES = 16, 3
# The codes of a fixture's codebooks are below this.
_CODE = 64


@dataclass(frozen=True, slots=True)
class Speech:
    """What was spoken: a frame's codes, the embedding of them, and the samples of other codes; empty where it failed.

    ``errors`` are the lines of the log that say what went wrong.
    """

    codes: list[int] = field(default_factory=list)
    embedding: list[float] = field(default_factory=list)
    sound: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def _library() -> Path | None:
    """Return where the wheel's library is; None without the wheel."""
    spec = importlib.util.find_spec("xllamacpp")
    places = spec.submodule_search_locations if spec else None
    return next((path for place in places or () for path in Path(place).glob("xllamacpp*.so")), None)


def can_speak() -> bool:
    """Whether the wheel is installed, and its library has the call, for a test to skip itself."""
    library = _library()
    return library is not None and b"mtmd_gen_audio_process" in library.read_bytes()


def spoken_codes() -> list[int]:
    """Return the codes that are decoded, of one frame after the other."""
    return [number * 29 % _CODE for number in range(FRAMES * CODES)]


def speak(language_model: Path, mmproj: Path, width: int, timeout: float = 600.0) -> Speech:
    """Load both files in a new process, and speak; ``width`` is the language model's, ``timeout`` in seconds."""
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    command = [sys.executable, "-m", "tests.llama_speech", str(language_model), str(mmproj), str(width)]
    process = subprocess.run(command, capture_output=True, timeout=timeout, check=False, env=environment)
    log = process.stderr.decode("utf-8", "replace").splitlines()
    if process.returncode == 0:
        return Speech(**json.loads(process.stdout))
    told = [line for line in log if re.search(r"\.(?:c|cpp|h):\d+: |failed|Assertion", line)]
    return Speech(errors=told or [f"ended with {process.returncode}"])


class _Parameters(ctypes.Structure):
    """A structure that is only handed on; it is larger than llama.cpp's, which reads its beginning."""

    _fields_ = (("bytes", ctypes.c_uint8 * 1024),)


class _Input(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("code0", ctypes.c_int32),
        ("embedding", ctypes.POINTER(ctypes.c_float)),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_float),
        ("seed", ctypes.c_uint32),
        ("temperature", ctypes.c_float),
        ("codes", ctypes.POINTER(ctypes.c_int32)),
        ("code_count", ctypes.c_size_t),
        ("features", ctypes.c_void_p),
        ("feature_count", ctypes.c_size_t),
        ("state", ctypes.c_void_p),
        ("state_size", ctypes.c_size_t),
    )


class _Output(ctypes.Structure):
    _fields_ = (
        ("codes", ctypes.POINTER(ctypes.c_int32)),
        ("code_count", ctypes.c_size_t),
        ("features", ctypes.c_void_p),
        ("feature_count", ctypes.c_size_t),
        ("embedding", ctypes.POINTER(ctypes.c_float)),
        ("is_end", ctypes.c_bool),
        ("sound", ctypes.POINTER(ctypes.c_float)),
        ("sample_count", ctypes.c_size_t),
        ("state", ctypes.c_void_p),
        ("state_size", ctypes.c_size_t),
    )


def _functions() -> Any:
    library = ctypes.CDLL(str(_library()))
    library.llama_model_default_params.restype = _Parameters
    library.mtmd_context_params_default.restype = _Parameters
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Parameters]
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.mtmd_init_from_file.argtypes = [ctypes.c_char_p, ctypes.c_void_p, _Parameters]
    library.mtmd_init_from_file.restype = ctypes.c_void_p
    library.mtmd_gen_inp_default.argtypes = [ctypes.c_void_p]
    library.mtmd_gen_inp_default.restype = _Input
    library.mtmd_gen_audio_process.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Input), ctypes.POINTER(_Output)]
    return library


def _answer(language_model: str, mmproj: str, width: int) -> dict[str, Any]:
    """Load the files, give a state of the language model, and the codes of some frames; exits where one is refused."""
    library = _functions()
    library.llama_backend_init()
    model = library.llama_model_load_from_file(language_model.encode(), library.llama_model_default_params())
    context = model and library.mtmd_init_from_file(mmproj.encode(), model, library.mtmd_context_params_default())
    if not context:
        sys.exit("failed to load")
    given, spoken = library.mtmd_gen_inp_default(context), _Output()
    # The likeliest code each time: chance has nothing to choose from.
    given.top_k, given.seed, given.code0 = 1, 1, 3
    given.embedding = (ctypes.c_float * width)(*((number * 7 % 11 - 5) / 10 for number in range(width)))
    if library.mtmd_gen_audio_process(context, given, spoken):
        sys.exit("failed to predict")
    found = {"codes": spoken.codes[: spoken.code_count], "embedding": spoken.embedding[:width]}
    given.type, given.code_count = 1, FRAMES * CODES
    given.codes = (ctypes.c_int32 * given.code_count)(*spoken_codes())
    if library.mtmd_gen_audio_process(context, given, spoken):
        sys.exit("failed to decode")
    return {**found, "sound": spoken.sound[: spoken.sample_count]}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
