"""Pickles that are wrong, and pickles that are made to take all memory or time."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torch_bytes import (
    archive,
    call,
    checkpoint,
    group,
    mapping,
    named,
    number,
    numbers,
    ordered_dict,
    storage,
    tensor,
    text,
)
from tests.torch_files import FOUR, WEIGHT, problem

# Pickles that are wrong.

REBUILD = named("torch._utils", "_rebuild_tensor_v2")
PICKLES = {
    "empty": (b"", "data.pkl is truncated or damaged at its byte 2"),
    "stack-underflow": (b"\x85", "truncated or damaged"),
    "mark-missing": (b"t", "truncated or damaged"),
    "mark-above-the-stack": (b"NN(\x86t", "truncated or damaged"),
    "memo-missing": (b"h\x07", "truncated or damaged"),
    "long-string": (b"X\xff\xff\xff\xff", "truncated or damaged"),
    "no-utf-8": (b"X\x01\0\0\0\xff", "truncated or damaged"),
    "surrogate": (text("\ud800"), "truncated or damaged"),
    "global-without-end": (b"ctorch" + b"h" * 1000, "truncated or damaged"),
    "global-with-control-characters": (
        text("posix") + text("sys\x1b[2Jtem\n") + b"\x93",
        r"asks for 'posix.sys\x1b[2Jtem\n'",
    ),
    "global-of-great-length": (text("x" * 10_000) + text("y") + b"\x93", "asks for 'xxxx"),
    "global-no-string": (number(1) + number(2) + b"\x93", "a global whose name is no string"),
    "torchscript-class": (named("__torch__.clip", "Model"), "a class of a TorchScript archive"),
    "long4": (b"\x8b\xff\xff\xff\x7f", "opcode LONG4"),
    "decimal": (b"I" + b"9" * 10_000 + b"\n", "opcode INT"),
    "bytes": (b"B\xff\xff\xff\xff", "opcode BINBYTES"),
    "unknown-opcode": (b"\xff", "opcode 0xff (unknown)"),
    "append-to-tuple": (b")" + number(1) + b"a", "appends to a tuple"),
    "inst-of-something-known": (b"(itorch\nSize\n", "opcode INST"),
    "item-of-list": (b"]" + number(1) + number(1) + b"s", "sets an item of a list"),
    "item-without-value": (b"}(" + number(1) + b"u", "or one without a value"),
    "tuple-as-key": (b"})" + number(1) + b"s", "a dict with a tuple for a key"),
    "long-as-key": (b"}" + number(2**61 - 1) + number(1) + b"s", "a dict with an int for a key"),
    "call-of-tuple": (b"))R", "calls a tuple"),
    "call-of-dtype": (named("torch", "bfloat16") + b")R", "calls a dtype"),
    "call-without-tuple": (REBUILD + b"]R", "calls a function"),
    "too-few-arguments": (
        call(REBUILD, storage("0", 4)),
        "calls _rebuild_tensor_v2 with 1 arguments, should be 6 to 7",
    ),
    "arguments-of-ordered-dict": (call(named("collections", "OrderedDict"), b"]"), "with 1 arguments, should be 0"),
    "storage-of-tensor": (call(REBUILD, *[number(0)] * 6), "a tensor whose storage is none"),
    "dtype-of-tensor": (
        call(named("torch._utils", "_rebuild_tensor_v3"), storage("0", 4), *[number(0)] * 6),
        "a tensor whose dtype is none",
    ),
    "parameter-of-nothing": (
        call(named("torch._utils", "_rebuild_parameter"), *[number(0)] * 3),
        "a parameter of something that is no tensor",
    ),
    "size-of-nothing": (call(named("torch", "Size"), number(0)), "a torch.Size of something that is no tuple"),
    "ranks-differ": (mapping({"weight": tensor(storage("0", 4), 0, (4,), (1, 1))}), "strides are malformed"),
    "storage-by-number": (number(3) + b"Q", "refers to something outside that is no storage"),
    "module-by-id": (group(text("module"), *[b"N"] * 4) + b"Q", "refers to something outside that is no storage"),
    "storage-class": (group(text("storage"), *[text("0")] * 4) + b"Q", "a storage whose class, key or number"),
    "storage-count": (storage("0", -1), "a storage whose class, key or number"),
    "storage-view": (storage("0", 4, "FloatStorage", group(text("1"), number(3), number(2))), "does not lie inside"),
    "storage-view-no-tuple": (storage("0", 4, "FloatStorage", number(1)), "does not lie inside"),
    "storage-of-two-sizes": (storage("0", 4) + storage("0", 5), "refers to storage 0 twice, with different sizes"),
    "attributes-no-dict": (ordered_dict() + b")b", "gives attributes to an OrderedDict"),
    "two-of-a-name": (mapping({"a": mapping({"b": WEIGHT}), "a.b": WEIGHT}), "two tensors of the name 'a.b'"),
    "long-name": (mapping({"a" * 300: WEIGHT}), "whose name has 300 characters"),
    "nothing-but-none": (b"N", "holds a NoneType"),
}


@pytest.mark.parametrize(("value", "words"), PICKLES.values(), ids=PICKLES)
def test_pickles_that_are_wrong(value: bytes, words: str, saved: Callable[[bytes], Path]) -> None:
    path = saved(checkpoint(value, FOUR) if value else archive({"data.pkl": b"\x80\x02"}))
    assert words in problem(path)


# Pickles that are made to take all memory or time.


def doubled(times: int, innermost: bytes) -> bytes:
    """Return a dict that refers to one twice, which does to another, and so on: 2 ** times paths to the innermost."""
    value = innermost
    for index in range(times):
        put = pickle.BINPUT + bytes([index])
        get = pickle.BINGET + bytes([index])
        value = b"}(" + text("a") + value + put + text("b") + get + b"u"
    return value


def nested(times: int) -> bytes:
    """Return a dict that has a dict that has a dict..."""
    return (b"}" + text("a")) * times + b"}" + b"s" * times


COSTLY = {
    "dicts-doubled": (doubled(14, mapping({str(index): b"N" for index in range(200)})), "500,000 entries"),
    "dicts-doubled-more": (doubled(40, mapping({"weight": WEIGHT})), "nested more than 16 deep"),
    "tensors-doubled": (doubled(14, mapping({str(index): WEIGHT for index in range(8)})), "65,536 tensors"),
    "dict-in-itself": (b"}q\0" + text("a") + b"h\0s", "nested more than 16 deep"),
    "dicts-nested": (nested(100_000), "nested more than 16 deep"),
    "tuples-nested": (b")" + b"\x85" * 490_000, "holds a tuple"),
    "tuples-nested-in-a-key": (b"})" + b"\x85" * 490_000 + b"Ns", "a dict with a tuple for a key"),
    "tuples-nested-in-a-reference": (b")" + b"\x85" * 490_000 + b"Q", "something outside that is no storage"),
    "tuples-doubled": (b")" + b"q\0h\0\x86" * 160_000, "holds a tuple"),
    "lists-nested": (b"]" * 245_000 + b"a" * 244_999, "holds a list"),
    "marks": (b"(" * 490_000, "truncated or damaged"),
    "dicts": (b"}" * 1_000_000, "more than 500,000 opcodes"),
    "ordered-dicts": (b"(" + (named("collections", "OrderedDict") + b")R") * 160_000 + b"t", "holds a tuple"),
    "same-tensor": (
        REBUILD + b"q\0" + group(storage("0", 4), number(0), *[numbers((1,) * 8)] * 2, b"N", b"N") + b"q\1"
        + b"h\0h\1R" * 160_000,
        "holds a tensor",
    ),
    "large-string": (text("\U0001f600" + "a" * ((16 << 20) - 100)), "holds a str"),
    "large-pickle": (text("a" * (16 << 20)), "should have 16,777,216 at most"),
}  # fmt: skip


# Those that are refused for their size are quick; what is nested or doubled takes a moment each.
QUICK = ("large-string", "large-pickle", "lists-nested")


@pytest.mark.parametrize(
    ("value", "words"),
    [pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, case in COSTLY.items()],
)
def test_pickles_that_are_costly(value: bytes, words: str, saved: Callable[[bytes], Path]) -> None:
    assert words in problem(saved(checkpoint(value, FOUR)))
