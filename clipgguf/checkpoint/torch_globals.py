"""What a pickle of torch.save may ask for: the complete list of globals, and what stands for each of them here.

torch rebuilds its objects by calling functions that the pickle names. Here each name gets a record or a function of
this module, so that nothing is imported. The functions and their arguments are those of ``torch/_utils.py`` (torch
2.13), the persistent ids those of ``torch/serialization.py``, the list is a part of the one in
``torch/_weights_only_unpickler.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

# GGUF has 4 axes at most, a convolution over video 5. The limit keeps it cheap to look at a shape, however often a
# hostile pickle refers to the same one.
MOST_TORCH_AXES = 8
LARGEST_INT64 = 2**63 - 1
LONGEST_TORCH_NAME = 256


@dataclass(frozen=True, slots=True)
class ElementType:
    """What a storage or a tensor consists of: safetensors' code for it, and the bytes of one element."""

    code: str
    itemsize: int


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage that the pickle refers to; ``view`` (legacy files only) is a range of it: offset, count of elements."""

    key: str
    element: ElementType
    elements: int
    view: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that the whole storage needs."""
        return self.elements * self.element.itemsize


@dataclass(frozen=True, slots=True)
class StorageView:
    """A tensor as the pickle describes it: where in a storage it begins, its shape and strides, all in elements.

    The numbers are integers of 64 bits, and as many strides as axes; whether they make sense is for the reader to say.
    """

    storage: Storage
    element: ElementType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class OrderedDict(dict[object, object]):
    """Stands for collections.OrderedDict, which a pickle may give attributes to: ``_metadata`` in a state dict."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Function:
    """A function that a pickle may call: one of this module's, under the name that it has in the pickle."""

    name: str
    function: Callable[..., object]
    arguments: range


class RefusedError(Exception):
    """What the pickle does that cannot be, as the end of a sentence that begins with its name."""


def _size(axes: object) -> tuple[object, ...]:
    if not isinstance(axes, tuple):
        raise RefusedError("makes a torch.Size of something that is no tuple")
    return axes


def _tensor(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object = None,
    _backward_hooks: object = None,
    metadata: object = None,
) -> StorageView:
    if not isinstance(storage, Storage):
        raise RefusedError("describes a tensor whose storage is none")
    if not _is_int64(offset) or not _is_axes(shape) or not _is_axes(strides) or len(shape) != len(strides):
        raise RefusedError(
            f"describes a tensor in storage {name_text(storage.key)} whose offset, shape or strides are malformed: "
            f"should be an integer and two tuples of as many integers, at most {MOST_TORCH_AXES}"
        )
    # torch keeps negation and conjugation as a mark on the tensor (get_tensor_metadata), not in the bytes.
    if isinstance(metadata, dict) and any(metadata.values()):
        raise RefusedError(
            f"marks a tensor in storage {name_text(storage.key)} as negated or conjugated; it should be saved after "
            "resolve_neg() and resolve_conj()"
        )
    return StorageView(storage, storage.element, offset, shape, strides)


def _tensor_v3(*arguments: object) -> StorageView:
    # As _tensor, with the dtype before the metadata.
    *first, element = arguments[:7]
    if not isinstance(element, ElementType):
        raise RefusedError("describes a tensor whose dtype is none")
    return replace(_tensor(*first, *arguments[7:]), element=element)


def _parameter(tensor: object, _requires_grad: object, _backward_hooks: object) -> StorageView:
    if not isinstance(tensor, StorageView):
        raise RefusedError("makes a parameter of something that is no tensor")
    return tensor


def _is_int64(value: object) -> TypeGuard[int]:
    # bool is a subclass of int, and no count of anything.
    return type(value) is int and -LARGEST_INT64 <= value <= LARGEST_INT64


def _is_count(value: object) -> TypeGuard[int]:
    return _is_int64(value) and value >= 0


def _is_axes(value: object) -> TypeGuard[tuple[int, ...]]:
    if not isinstance(value, tuple) or len(value) > MOST_TORCH_AXES or not set(map(type, value)) <= {int}:
        return False
    return not value or (min(value) >= -LARGEST_INT64 and max(value) <= LARGEST_INT64)


# What is in the module torch: element types by the names of their storages' classes and of their dtypes.
_ELEMENT_TYPES = (
    (ElementType("F32", 4), "FloatStorage", "float32"),
    (ElementType("F16", 2), "HalfStorage", "float16"),
    (ElementType("BF16", 2), "BFloat16Storage", "bfloat16"),
    (ElementType("F64", 8), "DoubleStorage", "float64"),
    (ElementType("I64", 8), "LongStorage", "int64"),
    (ElementType("I32", 4), "IntStorage", "int32"),
    (ElementType("I16", 2), "ShortStorage", "int16"),
    (ElementType("I8", 1), "CharStorage", "int8"),
    (ElementType("U64", 8), "uint64"),
    (ElementType("U32", 4), "uint32"),
    (ElementType("U16", 2), "uint16"),
    (ElementType("U8", 1), "ByteStorage", "uint8"),
    (ElementType("BOOL", 1), "BoolStorage", "bool"),
    (ElementType("C64", 8), "ComplexFloatStorage", "complex64"),
    (ElementType("F8_E4M3", 1), "float8_e4m3fn"),
    (ElementType("F8_E5M2", 1), "float8_e5m2"),
    (ElementType("F8_E4M3FNUZ", 1), "float8_e4m3fnuz"),
    (ElementType("F8_E5M2FNUZ", 1), "float8_e5m2fnuz"),
    (ElementType("F8_E8M0", 1), "float8_e8m0fnu"),
)
# Every global that a pickle may ask for, by module and name, and what it gets.
GLOBALS: Mapping[tuple[str, str], ElementType | Function] = {
    ("collections", "OrderedDict"): Function("collections.OrderedDict", OrderedDict, range(1)),
    ("torch", "Size"): Function("torch.Size", _size, range(1, 2)),
    ("torch._utils", "_rebuild_tensor"): Function("_rebuild_tensor", _tensor, range(4, 5)),
    ("torch._utils", "_rebuild_tensor_v2"): Function("_rebuild_tensor_v2", _tensor, range(6, 8)),
    ("torch._utils", "_rebuild_tensor_v3"): Function("_rebuild_tensor_v3", _tensor_v3, range(7, 9)),
    ("torch._utils", "_rebuild_parameter"): Function("_rebuild_parameter", _parameter, range(3, 4)),
    # An untyped storage counts bytes; its tensors come by _rebuild_tensor_v3 and bring a dtype.
    ("torch.storage", "UntypedStorage"): ElementType("U8", 1),
    **{("torch", name): element for element, *names in _ELEMENT_TYPES for name in names},
}


def storage_of(reference: object) -> Storage:
    """Return the storage that a persistent id refers to.

    It is ("storage", class, key, location, number of elements), and in a legacy file has a sixth item: None, or the
    view's (key, offset, number of elements). The location is the device that the tensor was on.
    """
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise RefusedError('refers to something outside that is no storage; should be ("storage", class, key, ...)')
    _, element, key, _, elements, *views = reference
    if not isinstance(element, ElementType) or not isinstance(key, str) or not _is_count(elements):
        raise RefusedError("refers to a storage whose class, key or number of elements is none")
    view = views[0] if views else None
    if view is None:
        return Storage(key, element, elements)
    if isinstance(view, tuple) and len(view) == 3:
        _, offset, length = view
        if _is_count(offset) and _is_count(length) and offset + length <= elements:
            return Storage(key, element, elements, (offset, length))
    raise RefusedError(f"refers to a view of storage {name_text(key)} that does not lie inside it")


# What a user knows our records as.
_KINDS: Mapping[type, str] = {StorageView: "tensor", Storage: "storage", ElementType: "dtype", Function: "function"}


def kind_of(value: object) -> str:
    """Return what a value is, without its content: that can be long, nested or unprintable."""
    name = _KINDS.get(type(value)) or type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def name_text(text: str) -> str:
    """Return a name of the file's as it is, or quoted and shortened where a terminal should not see it as it is."""
    return text if text.isprintable() and len(text) <= LONGEST_TORCH_NAME else repr(text[:LONGEST_TORCH_NAME])
