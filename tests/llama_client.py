"""The real llama.cpp as a test client: a tiny language model, one image, one answer.

llama.cpp comes as a wheel, ``xllamacpp``. A test writes a language model of some 300 KB whose width fits the projector,
loads it beside the mmproj under test, and sends an OpenAI-style chat request with a PNG as a ``data:`` URL.

Each question is asked in a process of its own: what llama.cpp checks ends as a ``RuntimeError`` with the reason in the
log only; what it asserts (a key or tensor of the wrong type) aborts the process.

The language model is a probe. Its attention looks at all positions alike and its feed-forward is zero, so the logits
of the first token follow from the image features: `predicted_logits`. They say whether llama.cpp computed from the
file what it means, where the text says only that it did not crash.
"""

import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.media import UInt8Array, image, random_pixels, sound

CHILD = Path(__file__).with_name("llama_child.py")
Float32Array = npt.NDArray[np.float32]

PROMPT = "hi"  # Follows the image; the chat template adds nothing to it.

# Before and after an image, several families want tokens of their own.
_SPECIAL = [
    *("\n\n", "<image>", "</image>", "<slice>", "</slice>", "<fake_token_around_image>", "<global-img>"),
    *("<|img_thumbnail|>", "<|image_start|>", "<|image_end|>", "<im_start>", "<im_end>", "<patch_start>"),
    *("<patch_end>", "<patch_newline>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>"),
]
_CONTROL = ["<unk>", "<s>", "</s>", *_SPECIAL]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_PIECES = ["\u2581", *(chr(code) for code in range(33, 127))]
_FIRST_PIECE = len(_CONTROL) + len(_BYTES)
_BOS, _EOS, _UNKNOWN = 1, 2, 0
_RMS_EPSILON = 1e-5
_CONTEXT_LENGTH = 8192
# An assertion is not written by the logger's thread, and so may land in the middle of a line of the log.
_MISMATCH = re.compile(r"mismatch between text model \(n_embd = \d+\) and mmproj \(n_embd = (\d+)\)")
_FEATURES = re.compile(r"Shape: \[\d+, (\d+)\]")
_FAILURE = re.compile(r"^[\d.]+ E |\.(?:c|cc|cpp|h):\d+: |^terminate called|^\s*what\(\):")


@dataclass(frozen=True, slots=True, eq=False)
class ClientResult:
    """What llama.cpp did with one language model, one mmproj and one image.

    ``ok`` means that both files loaded and the request was answered. ``logits`` is the first answered
    token's, by token id, up to a constant that is the same for all (float32, empty unless ``ok``).
    ``image_tokens`` is how many positions the image took. ``exit_code`` is that of the process: 1 for a file
    that llama.cpp refuses, negative for a signal (-6 an assertion, -11 a tensor that it misses only when
    it runs), 0 for a request answered with an error, None after a timeout.
    """

    ok: bool
    text: str
    log: str
    logits: Float32Array
    image_tokens: int
    exit_code: int | None

    @property
    def errors(self) -> list[str]:
        """The lines of the log that say what went wrong: logged as errors, assertions, C++ exceptions."""
        return [line.strip() for line in self.log.splitlines() if _FAILURE.search(line)]

    @property
    def features(self) -> list[int]:
        """How many tokens each part of the image gave that went through the tower at once: tiles, and the whole."""
        return [int(count) for count in _FEATURES.findall(self.log)]


def is_available() -> bool:
    """Whether the wheel ``xllamacpp`` is installed, for a test to skip itself."""
    return importlib.util.find_spec("xllamacpp") is not None


def _full(value: float, *shape: int) -> Float32Array:
    return np.full(shape, value, np.float32)


def write_tiny_language_model(path: Path, n_embd: int, seed: int = 0, *, mrope: bool = False) -> None:
    """Write a Llama of one layer with a SentencePiece vocabulary of 373 tokens, in F32.

    ``n_embd`` must be even, and the projector's output width; llama.cpp refuses the pair otherwise. With ``mrope`` it
    is a Qwen2-VL, of which it knows that positions have rows and columns.
    """
    rng = np.random.default_rng(seed)
    tokens = [*_CONTROL, *_BYTES, *_PIECES]
    kinds = gguf.TokenType
    writer = gguf.GGUFWriter(path, "qwen2vl" if mrope else "llama")
    writer.add_context_length(_CONTEXT_LENGTH)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(_RMS_EPSILON)
    writer.add_rope_dimension_count(n_embd)
    if mrope:
        third = n_embd // 6
        writer.add_rope_dimension_sections([n_embd // 2 - 2 * third, third, third, 0])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-index) for index in range(len(tokens))])
    rest = [kinds.CONTROL] * (len(_CONTROL) - 1) + [kinds.BYTE] * len(_BYTES) + [kinds.NORMAL] * len(_PIECES)
    writer.add_token_types([kinds.UNKNOWN, *rest])
    writer.add_bos_token_id(_BOS)
    writer.add_eos_token_id(_EOS)
    writer.add_unk_token_id(_UNKNOWN)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")

    def normal(*shape: int, scale: float = 1.0) -> Float32Array:
        values: Float32Array = (rng.standard_normal(shape) * (scale / math.sqrt(shape[-1]))).astype(np.float32)
        return values

    zeros = functools.partial(_full, 0)
    # Only name_text pieces have an output row that is not zero: the answer is text, never the end of
    # it, and the logit of all the others is exactly 0, which turns log probabilities back into logits.
    output = normal(len(tokens), n_embd, scale=2.0)
    output[:_FIRST_PIECE] = 0
    # Small embeddings leave the last position to what attention brings it: the mean over the image.
    writer.add_tensor("token_embd.weight", normal(len(tokens), n_embd, scale=0.05))
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        writer.add_tensor(name, _full(1, n_embd))
    writer.add_tensor("output.weight", output)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight"):
        writer.add_tensor(name, zeros(n_embd, n_embd))
    writer.add_tensor("blk.0.attn_v.weight", normal(n_embd, n_embd))
    for name in ("blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v") if mrope else ():
        writer.add_tensor(f"{name}.bias", zeros(n_embd))
    writer.add_tensor("blk.0.attn_output.weight", normal(n_embd, n_embd))
    for name in ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"):
        writer.add_tensor(name, zeros(32, n_embd))
    writer.add_tensor("blk.0.ffn_down.weight", zeros(n_embd, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def predicted_logits(model_path: Path, features: Float32Array) -> Float32Array:
    """The logits, by token id, with which the tiny model must answer to image features (tokens, n_embd)."""
    weights = {tensor.name: np.asarray(tensor.data, np.float32) for tensor in gguf.GGUFReader(model_path).tensors}

    def norm(x: Float32Array) -> Float32Array:
        return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + _RMS_EPSILON), np.float32)

    embeddings = weights["token_embd.weight"]
    text = [_FIRST_PIECE + _PIECES.index(character) for character in PROMPT]
    prompt = np.concatenate([embeddings[[_BOS]], np.asarray(features, np.float32), embeddings[text]])
    attended = norm(prompt).mean(axis=0) @ weights["blk.0.attn_v.weight"].T @ weights["blk.0.attn_output.weight"].T
    return np.asarray(norm(prompt[-1] + attended) @ weights["output.weight"].T, np.float32)


def answer_image(
    model_path: Path,
    mmproj_path: Path,
    pixels: UInt8Array | None = None,
    *,
    max_tokens: int = 4,
    timeout: float = 600.0,
) -> ClientResult:
    """Load both files in a new process, ask about one image at temperature 0, and report what happened.

    ``pixels`` is (height, width, 3), by default 56 x 56 noise; ``timeout`` is in seconds. Never raises
    for what llama.cpp does with the files.
    """
    return _answer_about(model_path, mmproj_path, image(pixels), max_tokens=max_tokens, timeout=timeout)


def _answer_about(
    model_path: Path, mmproj_path: Path, medium: dict[str, Any], *, max_tokens: int = 4, timeout: float = 600.0
) -> ClientResult:
    question = {
        "model": str(model_path),
        "mmproj": str(mmproj_path),
        "medium": medium,
        "text": PROMPT,
        "context": _CONTEXT_LENGTH,
        "max_tokens": max_tokens,
        "top_logprobs": _FIRST_PIECE + len(_PIECES),
    }
    environment = {
        **os.environ,
        "GGML_NO_BACKTRACE": "1",  # Otherwise an assertion attaches gdb where there is one: seconds, and pages of log.
        "MTMD_DEBUG_EMBEDDINGS": "1",  # Logs the shape, first token and statistics of the projected features.
    }
    try:
        process = subprocess.run(
            [sys.executable, CHILD],
            input=json.dumps(question).encode(),
            capture_output=True,
            timeout=timeout,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as expired:
        return _failure((expired.stderr or b"").decode("utf-8", "replace"), None)
    log = process.stderr.decode("utf-8", "replace")
    if process.returncode != 0:
        return _failure(log, process.returncode)
    response = json.loads(process.stdout)
    if "error" in response:
        return _failure(f"{log}\n0 E response: {response['error']}", process.returncode)  # In the log's own form.
    choice = response["choices"][0]
    logprobs = np.full(_FIRST_PIECE + len(_PIECES), np.nan, np.float32)
    for entry in choice["logprobs"]["content"][0]["top_logprobs"]:
        logprobs[entry["id"]] = entry["logprob"]
    text_tokens = 1 + len(PROMPT)
    return ClientResult(
        ok=True,
        text=choice["message"]["content"],
        log=log,
        # Control and byte tokens have the logit 0, whatever the image.
        logits=logprobs - logprobs[len(_CONTROL)],
        image_tokens=response["usage"]["prompt_tokens"] - text_tokens,
        exit_code=process.returncode,
    )


def ask(mmproj: Path, directory: Path, size: tuple[int, int] = (112, 112)) -> ClientResult:
    """Ask about a noise image of a size, and about a sound, whatever of these a file is for.

    The last answer counts, and the first that fails; ``logits`` are those of all, one after the other.
    The language model, which is written to a directory, is as wide as the file's projection_dim says, or llama.cpp.
    MiniCPM-V's files have 0.
    """
    fields = gguf.GGUFReader(mmproj).fields
    projectors = [field.contents() for key, field in fields.items() if key.endswith("projector_type")]
    media = {"vision": image(random_pixels(*size)), "audio": sound()}
    if "gemma3nv" in projectors:
        del media["audio"]  # llama.cpp passes over it, and refuses sounds.
    # Of a file that tells of none, any shows that it is refused.
    asked = [medium for part, medium in media.items() if f"clip.has_{part}_encoder" in fields] or [media["vision"]]
    width = next(field.contents() for key, field in fields.items() if key.endswith(".projection_dim")) or 32
    # HunyuanVL counts its tokens by rows and columns.
    mrope = "hunyuanvl" in projectors
    for _ in range(2):
        write_tiny_language_model(directory / "llama.gguf", width, mrope=mrope)
        logits: list[Float32Array] = []
        for medium in asked:
            result = _answer_about(directory / "llama.gguf", mmproj, medium)
            logits.append(result.logits)
            if not result.ok:
                break
        other = _MISMATCH.search(result.log)
        if result.ok or other is None:
            break
        width = int(other[1])
    return replace(result, logits=np.concatenate(logits) if result.ok else result.logits)


def _failure(log: str, exit_code: int | None) -> ClientResult:
    return ClientResult(ok=False, text="", log=log, logits=np.empty(0, np.float32), image_tokens=0, exit_code=exit_code)
