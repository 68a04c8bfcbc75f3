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
    LONGEST_NAME,
    Function,
    OrderedDict,
    RefusedError,
    Storage,
    kind_of,
    printable,
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
    return _Interpreter(data, where, start).run(most_opcodes)


class _Interpreter:
    """A pickle machine: the bytes and a position in them, a stack with marks, and a memo."""

    def __init__(self, data: bytes, where: str, start: int) -> None:
        self.data = data
        self.where = where
        self.position = start
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, most_opcodes: int) -> Unpickled:
        """Carry out opcodes up to STOP."""
        try:
            for _ in range(most_opcodes):
                opcode = self.data[self.position]
                self.position += 1
                if opcode == pickle.STOP[0]:
                    return Unpickled(self.stack.pop(), self.storages, self.position)
                operation = _OPERATIONS.get(opcode)
                if operation is None:
                    raise RefusedError(
                        f"uses the pickle opcode {_opcode_name(opcode)}, which no state dict needs; refused"
                    )
                operation(self)
        except RefusedError as e:
            raise CheckpointError(f"{self.where} {e}") from e
        except (IndexError, KeyError, UnicodeDecodeError) as e:
            # An empty stack or the data's end, a memo entry that was never stored, a string that is no UTF-8.
            raise CheckpointError(f"{self.where} is truncated or damaged at its byte {self.position:,}") from e
        raise CheckpointError(f"{self.where} has more than {most_opcodes:,} opcodes, far more than it should need")

    def read(self, length: int) -> bytes:
        """Return the next bytes; IndexError when there are fewer, so that a length is never believed."""
        end = self.position + length
        if end > len(self.data):
            raise IndexError(end)
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def read_unsigned(self, length: int) -> int:
        """Return the next bytes as a little-endian number."""
        return int.from_bytes(self.read(length), "little")

    def read_line(self) -> str:
        """Return one of the two lines that name a global."""
        end = self.data.find(b"\n", self.position, self.position + LONGEST_NAME)
        if end < 0:
            raise IndexError(end)
        line = self.data[self.position : end].decode()
        self.position = end + 1
        return line

    def pop_to_mark(self) -> list[object]:
        """Return what was pushed since the last mark."""
        mark = self.marks.pop()
        if mark > len(self.stack):
            raise IndexError(mark)
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def skip_version(self) -> None:
        self.read(1)  # The opcodes say all that the protocol's number could.

    def skip_frame(self) -> None:
        self.read(8)  # A frame's length only helps to read ahead.

    def put(self) -> None:
        self.memo[self.read_unsigned(1)] = self.stack[-1]

    def put_long(self) -> None:
        self.memo[self.read_unsigned(4)] = self.stack[-1]

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self) -> None:
        self.stack.append(self.memo[self.read_unsigned(1)])

    def get_long(self) -> None:
        self.stack.append(self.memo[self.read_unsigned(4)])

    def push_float(self) -> None:
        self.stack.extend(struct.unpack(">d", self.read(8)))

    def push_signed(self) -> None:
        self.stack.append(int.from_bytes(self.read(4), "little", signed=True))

    def push_long(self) -> None:
        # At most 255 bytes; LONG4, which has no limit, is no opcode that we know.
        self.stack.append(int.from_bytes(self.read(self.read_unsigned(1)), "little", signed=True))

    def push_dict(self) -> None:
        self.stack.append({})

    def push_list(self) -> None:
        self.stack.append([])

    def push_tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def append_one(self) -> None:
        self.extend([self.stack.pop()])

    def append_many(self) -> None:
        self.extend(self.pop_to_mark())

    def extend(self, items: list[object]) -> None:
        """Add to the list on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise RefusedError(f"appends to {kind_of(target)}, which is no list")
        target.extend(items)

    def set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def set_many(self) -> None:
        self.update(self.pop_to_mark())

    def update(self, items: list[object]) -> None:
        """Add keys and values, in turn, to the dict on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedError(f"sets an item of {kind_of(target)}, or one without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of a string is Python's secret, that of a small integer is itself. Keys of other types could be
            # made to collide, and a dict of them takes hours to fill.
            if not isinstance(key, str) and not (type(key) is int and abs(key) <= LARGEST_INT_KEY):
                raise RefusedError(
                    f"has a dict with {kind_of(key)} for a key, should be a string or an integer of 32 bits"
                )
            target[key] = value

    def find_global(self) -> None:
        module = self.read_line()
        self.push_global(module, self.read_line())

    def find_stacked_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise RefusedError("asks for a global whose name is no string; refused")
        self.push_global(module, name)

    def instantiate(self) -> None:
        # INST: a global and a call in one. We know no class to make instances of, so this is for the message alone.
        self.find_global()
        raise RefusedError("uses the pickle opcode INST, which no state dict needs; refused")

    def push_global(self, module: str, name: str) -> None:
        """Push what GLOBALS has under the name."""
        known = GLOBALS.get((module, name))
        if known is None:
            if module.partition(".")[0] == "__torch__":
                raise RefusedError(
                    f"asks for {printable(f'{module}.{name}')}, a class of a TorchScript archive; "
                    "should be a state dict saved with torch.save"
                )
            raise RefusedError(
                f"asks for {printable(f'{module}.{name}')}, which is nothing that a checkpoint of tensors needs; "
                "refused"
            )
        self.stack.append(known)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise RefusedError(f"calls {kind_of(function)}, which is no function that builds a tensor; refused")
        if len(arguments) not in function.arguments:
            raise RefusedError(
                f"calls {function.name} with {len(arguments):,} arguments, should be {function.arguments.start}"
                + (f" to {function.arguments.stop - 1}" if len(function.arguments) > 1 else "")
            )
        self.stack.append(function.function(arguments))

    def build(self) -> None:
        # What a state dict gets here is the attribute _metadata: versions of modules, which are of no use to us.
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, OrderedDict) or not isinstance(state, dict):
            raise RefusedError(f"gives attributes to {kind_of(target)}, only an OrderedDict takes them; refused")

    def refer_to_storage(self) -> None:
        storage = storage_of(self.stack.pop())
        if self.storages.setdefault(storage.key, storage).nbytes != storage.nbytes:
            raise RefusedError(f"refers to storage {printable(storage.key)} twice, with different sizes")
        self.stack.append(storage)


def _push(value: object) -> Callable[[_Interpreter], None]:
    return lambda machine: machine.stack.append(value)


def _push_unsigned(length: int) -> Callable[[_Interpreter], None]:
    return lambda machine: machine.stack.append(machine.read_unsigned(length))


def _push_string(length_of_length: int) -> Callable[[_Interpreter], None]:
    return lambda machine: machine.stack.append(machine.read(machine.read_unsigned(length_of_length)).decode())


def _push_last(count: int) -> Callable[[_Interpreter], None]:
    def push(machine: _Interpreter) -> None:
        if len(machine.stack) < count:
            raise IndexError(count)
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return push


# Every opcode that there is for us. Protocol 2 is torch.save's own; protocol 4 on its user's wish adds the last four.
_OPERATIONS: Mapping[int, Callable[[_Interpreter], None]] = {
    opcode[0]: operation
    for opcode, operation in (
        (pickle.PROTO, _Interpreter.skip_version),
        (pickle.MARK, _Interpreter.mark),
        (pickle.BINPUT, _Interpreter.put),
        (pickle.LONG_BINPUT, _Interpreter.put_long),
        (pickle.BINGET, _Interpreter.get),
        (pickle.LONG_BINGET, _Interpreter.get_long),
        (pickle.NONE, _push(None)),
        (pickle.NEWTRUE, _push(True)),
        (pickle.NEWFALSE, _push(False)),
        (pickle.BININT, _Interpreter.push_signed),
        (pickle.BININT1, _push_unsigned(1)),
        (pickle.BININT2, _push_unsigned(2)),
        (pickle.LONG1, _Interpreter.push_long),
        (pickle.BINFLOAT, _Interpreter.push_float),
        (pickle.BINUNICODE, _push_string(4)),
        (pickle.SHORT_BINSTRING, _push_string(1)),  # A str of Python 2.
        (pickle.EMPTY_TUPLE, _push(())),
        (pickle.TUPLE1, _push_last(1)),
        (pickle.TUPLE2, _push_last(2)),
        (pickle.TUPLE3, _push_last(3)),
        (pickle.TUPLE, _Interpreter.push_tuple),
        (pickle.EMPTY_LIST, _Interpreter.push_list),
        (pickle.APPEND, _Interpreter.append_one),
        (pickle.APPENDS, _Interpreter.append_many),
        (pickle.EMPTY_DICT, _Interpreter.push_dict),
        (pickle.SETITEM, _Interpreter.set_one),
        (pickle.SETITEMS, _Interpreter.set_many),
        (pickle.GLOBAL, _Interpreter.find_global),
        (pickle.INST, _Interpreter.instantiate),
        (pickle.REDUCE, _Interpreter.call),
        (pickle.BUILD, _Interpreter.build),
        (pickle.BINPERSID, _Interpreter.refer_to_storage),
        (pickle.FRAME, _Interpreter.skip_frame),
        (pickle.MEMOIZE, _Interpreter.memoize),
        (pickle.SHORT_BINUNICODE, _push_string(1)),
        (pickle.STACK_GLOBAL, _Interpreter.find_stacked_global),
    )
}


def _opcode_name(opcode: int) -> str:
    return next((known.name for known in pickletools.opcodes if known.code == chr(opcode)), f"{opcode:#04x} (unknown)")
