"""What a conversion asks of the hub: how many requests, how many bytes, how many round trips before the weights."""

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipgguf import Options, convert
from tests.checkpoints import REAL
from tests.hub_models import served
from tests.hub_server import HubServer
from tests.json_files import write_json
from tests.llava_checkpoints import PROJECTOR, Llava, write_hf
from tests.weights import Shapes, write_sparse_safetensors

# What the hub limits, by how its addresses begin. Its documentation ("rate limits"): whoever is not signed in may send
# 500 requests to the API in five minutes, and 3,000 for files ("/resolve/"). The CDN's are not counted.
KINDS = {"cache": "/api/resolve-cache/", "API": "/api/models/", "files": "/o/", "others": "/"}


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _no_hub: None) -> Iterator[HubServer]:
    with served(tmp_path, monkeypatch) as server:
        server.page = 1000  # As the hub's.
        write_hf(server.root / "o" / "llava", Llava(), shards=3)
        yield server


@pytest.mark.parametrize(("name", "json_files"), [("tiny-clip", 4), ("llava", 3)])
def test_few_requests(name: str, json_files: int, hub: HubServer, tmp_path: Path) -> None:
    convert(f"hf://o/{name}", tmp_path / "out.gguf")
    paths = [request.path for request in hub.requests if request.server == "hub"]
    kinds = Counter(next(kind for kind, start in KINDS.items() if path.startswith(start)) for path in paths)
    # The commit and the list of files; then each file once, here 3 of weights, which redirect to the CDN.
    assert kinds.pop("others", 0) <= 1  # What huggingface_hub 2 asks once a day, if it does.
    assert kinds == {"API": 2, "files": 3 + json_files, "cache": json_files}
    assert {request.method for request in hub.requests} == {"GET"}


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_weights_come_after_few_round_trips(shards: int, hub: HubServer, tmp_path: Path) -> None:
    write_hf(hub.root / "o" / "m", Llava(), shards=shards)
    # Twenty are a second where each takes 50 ms. Here they take longer, so that what the processor does hardly counts.
    hub.line.latency = 0.2
    started = time.monotonic()
    convert("hf://o/m", tmp_path / "out.gguf")
    weights = [r.moment for r in hub.requests if r.server == "cdn" and not (r.range or "").startswith("bytes=0-")]
    assert min(weights) + hub.line.latency - started <= 20 * hub.line.latency


def write_llava_7b(directory: Path) -> int:
    """Write LLaVA 1.5 7B in float16, all zero, in 3 files that take no disk; return the bytes of tower and projector.

    Names and shapes are those of llava-hf/llava-1.5-7b-hf.
    """
    llava = Llava(REAL["vit-l-14-336"].vision, text_width=4096)
    directory.mkdir(parents=True)
    write_json(directory / "config.json", llava.hf_config())
    write_json(directory / "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    own: Shapes = {f"vision_tower.{name}": shape for name, shape in llava.tower().items()}
    for name, shape in llava.projector_shapes().items():
        tail = name.removeprefix(PROJECTOR).replace("0.", "linear_1.").replace("2.", "linear_2.")
        own[f"multi_modal_projector.{tail}"] = shape
    rest: Shapes = {
        "language_model.model.embed_tokens.weight": (32064, 4096),
        "language_model.lm_head.weight": (32064, 4096),
    }
    for layer in range(32):
        before = f"language_model.model.layers.{layer}."
        rest |= {f"{before}mlp.{part}_proj.weight": (11008, 4096) for part in ("gate", "up")}
        rest |= {f"{before}self_attn.{part}_proj.weight": (4096, 4096) for part in "qkvo"}
        rest |= {f"{before}mlp.down_proj.weight": (4096, 11008)}
        rest |= {f"{before}{part}_layernorm.weight": (4096,) for part in ("input", "post_attention")}
    names = [*own, *rest]
    files = {name: f"model-{1 + 3 * n // len(names):05}-of-00003.safetensors" for n, name in enumerate(names)}
    for file in sorted(set(files.values())):
        write_sparse_safetensors(directory / file, {n: (own | rest)[n] for n in names if files[n] == file}, "F16")
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    return 2 * sum(map(math.prod, own.values()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="NTFS writes the zeros of a file of 14 GB")
def test_bytes_of_a_large_model(hub: HubServer, tmp_path: Path) -> None:
    own = write_llava_7b(hub.root / "o" / "llava-7b")
    whole = sum(path.stat().st_size for path in (hub.root / "o" / "llava-7b").iterdir())
    made = convert("hf://o/llava-7b", tmp_path / "out.gguf", Options(outtype="f16"))
    assert whole > 14e9
    assert own * 0.95 < made.bytes_in <= own
    assert made.bytes_in < hub.sent() <= 1.02 * made.bytes_in
