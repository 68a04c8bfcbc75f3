"""The pickle in a file of torch.save, by an interpreter that can build a state dict and nothing else.

Nothing is imported and nothing of the file's choice is called: a pickle names what it wants by module and name, and
torch_globals.GLOBALS is the whole list of what it gets. The approach is that of ``torch/_weights_only_unpickler.py``
(torch 2.13). The opcodes are described in CPython's ``Lib/pickletools.py``.

A pickle can also be made to exhaust memory or time. Against that, every opcode costs no more than the bytes that it has
in the file or a small constant, their number is limited, and a dict's keys are of types whose hashes cannot be chosen.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clipgguf.checkpoint.torch_globals import (
    GLOBALS,
    LONGEST_TORCH_NAME,
    Function,
    OrderedDict,
    RefusedError,
    Storage,
    kind_of,
    name_text,
    storage_of,
)
from clipgguf.errors import CheckpointError

# A tensor takes about 32 opcodes and 150 to 400 bytes: this is enough for 15,000 tensors, and is done in half a second.
MOST_OPCODES = 500_000
LARGEST_PICKLE = 1 << 24
LARGEST_INT_KEY = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What a pickle describes, the storages that it refers to by key, and the position of its end."""

    value: object
    storages: dict[str, Storage]
    end: int


def unpickle(data: bytes, where: str, start: int = 0, most_opcodes: int = MOST_OPCODES) -> Unpickled:
    """Return what the pickle that begins at ``start`` describes: dicts, lists, tuples, plain values and StorageViews.

    ``where`` names the pickle in messages. Raises CheckpointError when it is damaged, asks for anything that is not in
    GLOBALS, or is too large.
    """
    machine = _Machine(data, start)
    stack = machine.stack
    try:
        for _ in range(most_opcodes):
            opcode = data[machine.position]
            machine.position += 1
            if opcode == pickle.STOP[0]:
                return Unpickled(stack.pop(), machine.storages, machine.position)
            if value := _VALUES.get(opcode):
                stack.append(value(machine))
            elif operation := _OPERATIONS.get(opcode):
                operation(machine)
            else:
                raise RefusedError(f"uses the pickle opcode {_opcode_name(opcode)}, which no state dict needs; refused")
    except RefusedError as e:
        raise CheckpointError(f"{where} {e}") from e
    except (IndexError, KeyError, UnicodeDecodeError) as e:
        # An empty stack or the data's end, a memo entry that was never stored, a string that is no UTF-8.
        raise CheckpointError(f"{where} is truncated or damaged at its byte {machine.position:,}") from e
    raise CheckpointError(f"{where} has more than {most_opcodes:,} opcodes, far more than it should need")


class _Machine:
    """A pickle machine: the bytes and a position in them, a stack with marks, and a memo."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data = data
        self.position = start
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.storages: dict[str, Storage] = {}

    def read(self, length: int) -> bytes:
        """Return the next bytes; IndexError when there are fewer, so that a length is never believed."""
        end = self.position + length
        if end > len(self.data):
            raise IndexError(end)
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, length: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.read(length), "little", signed=signed)

    def string(self, length_of_length: int) -> str:
        return self.read(self.number(length_of_length)).decode()

    def line(self) -> str:
        """Return one of the two lines that name a global."""
        end = self.data.find(b"\n", self.position, self.position + LONGEST_TORCH_NAME)
        if end < 0:
            raise IndexError(end)
        line = self.data[self.position : end].decode()
        self.position = end + 1
        return line

    def pop(self, count: int) -> list[object]:
        return self.pop_from(len(self.stack) - count)

    def pop_to_mark(self) -> list[object]:
        return self.pop_from(self.marks.pop())

    def pop_from(self, first: int) -> list[object]:
        """Take a part of the stack, its last item last."""
        if not 0 <= first <= len(self.stack):
            raise IndexError(first)
        items = self.stack[first:]
        del self.stack[first:]
        return items

    def put(self, length: int) -> None:
        """Store the last item of the stack by a number of so many bytes, of none by the next number."""
        self.memo[self.number(length) if length else len(self.memo)] = self.stack[-1]

    def extend(self, items: list[object]) -> None:
        """Add to the list on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise RefusedError(f"appends to {kind_of(target)}, which is no list")
        target.extend(items)

    def update(self, items: list[object]) -> None:
        """Add keys and values, in turn, to the dict on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedError(f"sets an item of {kind_of(target)}, or one without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of a string is Python's secret, that of a small integer is itself. Keys of other types could be
            # made to collide, and a dict of them takes hours to fill.
            if not isinstance(key, str) and not (type(key) is int and abs(key) <= LARGEST_INT_KEY):
                right = "should be a string or an integer of 32 bits"
                raise RefusedError(f"has a dict with {kind_of(key)} for a key, {right}")
            target[key] = value

    def call(self) -> object:
        function, arguments = self.pop(2)
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise RefusedError(f"calls {kind_of(function)}, which is no function that builds a tensor; refused")
        if len(arguments) not in function.arguments:
            raise RefusedError(
                f"calls {function.name} with {len(arguments):,} arguments, should be {function.arguments.start}"
                + (f" to {function.arguments.stop - 1}" if len(function.arguments) > 1 else "")
            )
        return function.function(*arguments)

    def instantiate(self) -> None:
        # INST: a global and a call in one. We know no class to make instances of, so this is for the message alone.
        _global(self.line(), self.line())
        raise RefusedError("uses the pickle opcode INST, which no state dict needs; refused")

    def build(self) -> None:
        # What a state dict gets here is the attribute _metadata: versions of modules, which are of no use to us.
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, OrderedDict) or not isinstance(state, dict):
            raise RefusedError(f"gives attributes to {kind_of(target)}, only an OrderedDict takes them; refused")

    def storage(self) -> Storage:
        storage = storage_of(self.stack.pop())
        if self.storages.setdefault(storage.key, storage).nbytes != storage.nbytes:
            raise RefusedError(f"refers to storage {name_text(storage.key)} twice, with different sizes")
        return storage


def _global(module: object, name: object) -> object:
    """Return what GLOBALS has under a name."""
    if not isinstance(name, str) or not isinstance(module, str):
        raise RefusedError("asks for a global whose name is no string; refused")
    if (known := GLOBALS.get((module, name))) is not None:
        return known
    what = f"asks for {name_text(f'{module}.{name}')}"
    if module.partition(".")[0] == "__torch__":
        raise RefusedError(f"{what}, a class of a TorchScript archive; should be a state dict saved with torch.save")
    raise RefusedError(f"{what}, which is nothing that a checkpoint of tensors needs; refused")


# Every opcode that there is for us. Protocol 2 is torch.save's own; protocol 4 on its user's wish adds FRAME, MEMOIZE,
# SHORT_BINUNICODE and STACK_GLOBAL. Here is what pushes a value, ...
_VALUES: Mapping[int, Callable[[_Machine], object]] = {
    pickle.BINGET[0]: lambda machine: machine.memo[machine.number(1)],
    pickle.LONG_BINGET[0]: lambda machine: machine.memo[machine.number(4)],
    pickle.NONE[0]: lambda machine: None,
    pickle.NEWTRUE[0]: lambda machine: True,
    pickle.NEWFALSE[0]: lambda machine: False,
    pickle.BININT[0]: lambda machine: machine.number(4, signed=True),
    pickle.BININT1[0]: lambda machine: machine.number(1),
    pickle.BININT2[0]: lambda machine: machine.number(2),
    # At most 255 bytes; LONG4, which has no limit, is no opcode that we know.
    pickle.LONG1[0]: lambda machine: machine.number(machine.number(1), signed=True),
    pickle.BINFLOAT[0]: lambda machine: struct.unpack(">d", machine.read(8))[0],
    pickle.BINUNICODE[0]: lambda machine: machine.string(4),
    pickle.SHORT_BINSTRING[0]: lambda machine: machine.string(1),  # A str of Python 2.
    pickle.SHORT_BINUNICODE[0]: lambda machine: machine.string(1),
    pickle.EMPTY_TUPLE[0]: lambda machine: (),
    pickle.TUPLE1[0]: lambda machine: tuple(machine.pop(1)),
    pickle.TUPLE2[0]: lambda machine: tuple(machine.pop(2)),
    pickle.TUPLE3[0]: lambda machine: tuple(machine.pop(3)),
    pickle.TUPLE[0]: lambda machine: tuple(machine.pop_to_mark()),
    pickle.EMPTY_LIST[0]: lambda machine: [],
    pickle.EMPTY_DICT[0]: lambda machine: {},
    pickle.GLOBAL[0]: lambda machine: _global(machine.line(), machine.line()),
    pickle.STACK_GLOBAL[0]: lambda machine: _global(*machine.pop(2)),
    pickle.REDUCE[0]: _Machine.call,
    pickle.BINPERSID[0]: _Machine.storage,
}
# ... and what does not.
_OPERATIONS: Mapping[int, Callable[[_Machine], object]] = {
    pickle.PROTO[0]: lambda machine: machine.read(1),  # The opcodes say all that the protocol's number could.
    pickle.FRAME[0]: lambda machine: machine.read(8),  # A frame's length only helps to read ahead.
    pickle.MARK[0]: lambda machine: machine.marks.append(len(machine.stack)),
    pickle.BINPUT[0]: lambda machine: machine.put(1),
    pickle.LONG_BINPUT[0]: lambda machine: machine.put(4),
    pickle.MEMOIZE[0]: lambda machine: machine.put(0),
    pickle.APPEND[0]: lambda machine: machine.extend(machine.pop(1)),
    pickle.APPENDS[0]: lambda machine: machine.extend(machine.pop_to_mark()),
    pickle.SETITEM[0]: lambda machine: machine.update(machine.pop(2)),
    pickle.SETITEMS[0]: lambda machine: machine.update(machine.pop_to_mark()),
    pickle.INST[0]: _Machine.instantiate,
    pickle.BUILD[0]: _Machine.build,
}


def _opcode_name(opcode: int) -> str:
    return next((known.name for known in pickletools.opcodes if known.code == chr(opcode)), f"{opcode:#04x} (unknown)")
