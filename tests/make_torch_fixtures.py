"""Write tests/fixtures/torch anew: files of torch.save, some that are good and some that must be refused.

    pip install -e .[reference] && python -m tests.make_torch_fixtures

Needs torch; the files there are of torch 2.13.0, and depend neither on the time nor on the directory. Beside those in
``good``, ``expected.npz`` has the values of their tensors under "<file>/<dtype>/<name>"; types that numpy does not know
are there as unsigned integers with the same bits.
"""

import io
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests import torch_bytes
from tests.torch_bytes import call, checkpoint, named, storage, tensor, text

FIXTURES = Path(__file__).parent / "fixtures" / "torch"

# safetensors' code for each dtype, and the one that numpy holds it in.
DTYPES = {
    torch.float32: ("F32", torch.float32),
    torch.float16: ("F16", torch.float16),
    torch.bfloat16: ("BF16", torch.uint16),
    torch.float64: ("F64", torch.float64),
    torch.int64: ("I64", torch.int64),
    torch.int32: ("I32", torch.int32),
    torch.int16: ("I16", torch.int16),
    torch.int8: ("I8", torch.int8),
    torch.uint8: ("U8", torch.uint8),
    torch.uint16: ("U16", torch.uint16),
    torch.bool: ("BOOL", torch.bool),
    torch.complex64: ("C64", torch.complex64),
    torch.float8_e4m3fn: ("F8_E4M3", torch.uint8),
    torch.float8_e5m2: ("F8_E5M2", torch.uint8),
}

# What a hostile pickle does if it is executed: it leaves this file in the current directory.
TRACE = "clipgguf-was-here"


def values(*shape: int) -> Any:
    """Return a float32 tensor without two equal values, of which no other has the same bits after rounding."""
    count = int(np.prod(shape))
    return (torch.arange(1, count + 1, dtype=torch.float32) * 1.375 - 4).reshape(shape)


def model() -> Any:
    """Return a module with parameters and a buffer."""
    parts = {"projection": torch.nn.Linear(3, 2), "norm": torch.nn.LayerNorm(2)}
    module = torch.nn.Sequential(OrderedDict(parts))
    module.register_buffer("position_ids", torch.arange(5)[None])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(values(*parameter.shape))
    return module


def good() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return what is in each good file, and the tensors that a reader must find in it."""
    dtypes = {
        "f32": values(3, 4),
        "f16": values(2, 3).half(),
        "bf16": values(2, 3).bfloat16(),
        "f64": values(5).double(),
        "position_ids": torch.arange(7)[None],
        "i32": torch.arange(-3, 3, dtype=torch.int32),
        "i16": torch.arange(-3, 3, dtype=torch.int16),
        "i8": torch.arange(-3, 3, dtype=torch.int8),
        "u8": torch.arange(250, 256, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
    }
    a = values(3, 4)
    shared = {"a": a, "a.t": a.t(), "a.1": a[1], "a.columns": a[:, 1:3], "a.backwards": a.t()[1:].t()}
    transposed = {
        "matrix": values(4, 3).bfloat16().t(),
        "kernel": values(2, 3, 2, 2).permute(0, 2, 3, 1),
        "row": values(5, 1).t(),
    }
    expanded = {"rows": values(3).expand(4, 3), "all": values(1).expand(2, 2), "windows": values(5).unfold(0, 3, 1)}
    small = {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "logit_scale": torch.tensor(4.25).half()}
    # Enough for the opcodes that refer to more than 256 objects.
    many = {f"row.{index}": row for index, row in enumerate(values(50, 2))}
    untyped = {
        "u16": torch.arange(65530, 65536).to(torch.uint16)[2:],
        "f8_e4m3": values(4).to(torch.float8_e4m3fn),
        "f8_e5m2": values(2, 2).to(torch.float8_e5m2).t(),
    }
    state = model().state_dict()
    parameters = model().state_dict(keep_vars=True)
    run = {
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "epoch": 1,
        "optimizer": {"state": {0: {"exp_avg": values(2)}}, "param_groups": [{"lr": 0.1}]},
    }
    return {
        "dtypes.bin": (dtypes, dtypes),
        "shared.bin": (shared, shared),
        "transposed.bin": (transposed, transposed),
        "expanded.bin": (expanded, expanded),
        "small.bin": (small, small),
        "many.bin": (many, many),
        "untyped.bin": (untyped, untyped),
        "complex.bin": ({"c64": torch.view_as_complex(values(3, 2))},) * 2,
        "parameters.bin": (parameters, parameters),
        "nested.bin": (_nested(a), {"model.vision.weight": a, "model.bias": values(2)}),
        "wrapped.bin": (run, run["state_dict"]),
        "deepspeed.bin": ({"module": state, "global_steps": 7}, state),
    }


def _nested(a: torch.Tensor) -> dict[str, Any]:
    """Return a checkpoint with all that may stand between tensors."""
    return {
        "model": {"vision": {"weight": a}, "bias": values(2)},
        "epoch": 3,
        "loss": 0.25,
        "seed": 2**40,
        "note": None,
        "betas": [0.9, (1, 2)],
        "shape": a.shape,
        "dtype": torch.bfloat16,
        "resumed": True,
    }


def save(value: Any, path: Path, **options: Any) -> None:
    """Save with a fixed name of the root folder, which is the file's stem otherwise."""
    target = io.BytesIO()
    with numbered_storages():
        torch.save(value, target, **options)
    path.write_bytes(target.getvalue())


@contextmanager
def numbered_storages() -> Iterator[None]:
    """Let a legacy file name its storages by their order instead of by their addresses in memory."""
    addresses: dict[int, int] = {}
    original = torch._C.StorageBase._cdata

    def number(self: Any) -> int:
        return 94000000000000 + addresses.setdefault(original.__get__(self), len(addresses))

    torch.UntypedStorage._cdata = property(number)
    try:
        yield
    finally:
        del torch.UntypedStorage._cdata


def write_good(directory: Path) -> None:
    expected: dict[str, NDArray[Any]] = {}

    def expect(file: str, tensors: dict[str, Any]) -> None:
        for name, value in tensors.items():
            code, held_as = DTYPES[value.dtype]
            # view() of a scalar works between types of one size, which these are.
            expected[f"{file}/{code}/{name}"] = value.detach().contiguous().view(held_as).numpy()

    files = good()
    for file, (value, tensors) in files.items():
        save(value, directory / file)
        expect(file, tensors)
    for file, names, options in (
        ("legacy.bin", ("dtypes.bin", "shared.bin", "small.bin"), {"_use_new_zipfile_serialization": False}),
        ("legacy-untyped.bin", ("untyped.bin",), {"_use_new_zipfile_serialization": False}),
        ("protocol-4.bin", ("dtypes.bin", "transposed.bin"), {"pickle_protocol": 4}),
    ):
        together = {name: value for source in names for name, value in files[source][1].items()}
        save(together, directory / file, **options)
        expect(file, together)
    torch.serialization.set_crc32_options(False)
    save(files["shared.bin"][0], directory / "without-crc32.bin")
    torch.serialization.set_crc32_options(True)
    expect("without-crc32.bin", files["shared.bin"][1])
    # As somebody's zip program packs it anew.
    for source in ("dtypes.bin", "shared.bin", "small.bin"):
        with zipfile.ZipFile(directory / source) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        (directory / f"deflated-{source}").write_bytes(
            torch_bytes.archive(entries, root="", compression=zipfile.ZIP_DEFLATED)
        )
        expect(f"deflated-{source}", files[source][1])
    np.savez_compressed(directory / "expected.npz", **expected)  # type: ignore[arg-type] # Names are no options.


def write_refused(directory: Path) -> None:
    """Write what torch itself saves and we do not take."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # All of these are deprecated or in beta.
        script = io.BytesIO()
        torch.jit.save(torch.jit.trace(model(), values(1, 3)), script)
        with zipfile.ZipFile(script) as archive:
            # The debug information has this script's path, and the id is a hash of everything.
            names = (name for name in archive.namelist() if not name.endswith((".debug_pkl", "serialization_id")))
            entries = {name: archive.read(name) for name in names}
        (directory / "torchscript.pt").write_bytes(torch_bytes.archive(entries, root=""))
        save({"sparse": torch.eye(3).to_sparse()}, directory / "sparse.bin")
        save({"quantized": torch.quantize_per_tensor(values(4), 0.1, 0, torch.qint8)}, directory / "quantized.bin")
    save(torch.nn.Linear(2, 2), directory / "module.bin")
    save(values(2), directory / "tensor.bin")
    save([values(2)], directory / "list.bin")
    save({0: values(2)}, directory / "unnamed.bin")
    save({"imaginary": values(3, 2).view(torch.complex64).conj().imag}, directory / "negated.bin")
    save({"conjugate": values(3, 2).view(torch.complex64).conj()}, directory / "conjugated.bin")


def write_hostile(directory: Path) -> None:
    """Write what only somebody who means harm makes."""
    system, evaluate = named("posix", "system"), named("builtins", "eval")
    leave_trace = text(f"touch {TRACE}")
    four = {"0": bytes(16)}
    cases: dict[str, bytes] = {
        "os-system": call(system, leave_trace),
        "eval": call(evaluate, text(f"open({TRACE!r}, 'w')")),
        # The result of one call is an argument of the next, inside a tensor that looks harmless.
        "nested-reduce": torch_bytes.mapping(
            {"weight": tensor(call(named("builtins", "getattr"), system, leave_trace), 0, (2,), (1,))}
        ),
        "stack-global": text("posix") + text("system") + b"\x93" + leave_trace + b"\x85R",
        "inst": b"(" + leave_trace + b"iposix\nsystem\n",
        "obj": b"(" + system + leave_trace + b"o",
        "newobj": named("torch", "FloatStorage") + b")\x81",
        "build": torch_bytes.mapping({}) + torch_bytes.mapping({"__class__": text("x")}) + b"b",
        "build-global": named("torch", "Size") + torch_bytes.mapping({"function": text("x")}) + b"b",
        "extension": b"\x82\x01",
        "persistent-id": b"Pposix.system\n",
    }
    for name, value in cases.items():
        (directory / f"{name}.bin").write_bytes(checkpoint(value, four))
    views: dict[str, tuple[bytes, int, tuple[int, ...], tuple[int, ...]]] = {
        "out-of-range": (storage("0", 4), 1, (4,), (1,)),
        "out-of-range-by-stride": (storage("0", 4), 0, (2, 2), (3, 1)),
        "negative-strides": (storage("0", 4), 3, (4,), (-1,)),
        "negative-offset": (storage("0", 4), -1, (2,), (1,)),
        "negative-shape": (storage("0", 4), 0, (-1, -4), (1, 1)),
        "larger-than-storage": (storage("0", 4), 0, (1 << 40,), (0,)),
        "storage-larger-than-entry": (storage("0", 5), 0, (4,), (1,)),
        "storage-missing": (storage("1", 4), 0, (4,), (1,)),
        "storage-outside": (storage("../data.pkl", 4), 0, (4,), (1,)),
        "many-axes": (storage("0", 4), 0, (1,) * 1000, (1,) * 1000),
        "huge-numbers": (storage("0", 4), 0, (2**200,), (0,)),
    }
    for name, view in views.items():
        (directory / f"{name}.bin").write_bytes(checkpoint(torch_bytes.mapping({"weight": tensor(*view)}), four))
    (directory / "bool-shape.bin").write_bytes(
        checkpoint(
            torch_bytes.mapping(
                {
                    "weight": call(
                        named("torch._utils", "_rebuild_tensor"),
                        storage("0", 4),
                        torch_bytes.number(0),
                        torch_bytes.group(b"\x88"),
                        torch_bytes.numbers((1,)),
                    )
                }
            ),
            four,
        )
    )
    write_hostile_archives(directory)


def write_hostile_archives(directory: Path) -> None:
    """Write archives that inflate without end, or whose entries lead out of them."""
    weight = torch_bytes.pickled(torch_bytes.mapping({"weight": tensor(storage("0", 1 << 20), 0, (1 << 20,), (1,))}))
    bomb = {"data.pkl": weight, "data/0": bytes(4 << 20)}
    (directory / "zip-bomb.bin").write_bytes(torch_bytes.archive(bomb, compression=zipfile.ZIP_DEFLATED))
    plain = {"data.pkl": torch_bytes.pickled(torch_bytes.mapping({})), "data/0": bytes(16)}
    for name, entry in (("absolute-name", "/tmp/x"), ("parent-name", "archive/../../x"), ("windows-name", "C:\\x")):
        inside = {f"archive/{key}": content for key, content in plain.items()}
        (directory / f"{name}.bin").write_bytes(torch_bytes.archive({**inside, entry: b"x"}, root=""))


def main() -> None:
    torch.manual_seed(0)
    for name, write in (("good", write_good), ("refused", write_refused), ("hostile", write_hostile)):
        directory = FIXTURES / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        write(directory)


if __name__ == "__main__":
    main()
