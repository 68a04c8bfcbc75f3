"""The pickle in a file of torch.save, by an interpreter that can build a state dict and nothing else.

Nothing is imported and nothing of the file's choice is called: a pickle names what it wants by module and name, and
torch_globals.GLOBALS is the whole list of what it gets. The approach is that of ``torch/_weights_only_unpickler.py``
(torch 2.13). The opcodes are described in CPython's ``Lib/pickletools.py``.

A pickle can also be made to exhaust memory or time. Against that, every opcode costs no more than the bytes that it has
in the file or a small constant, their number is limited, and a dict's keys are of types whose hashes cannot be chosen.
"""

import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clipgguf.checkpoint.torch_globals import RefusedError, Storage
from clipgguf.checkpoint.torch_machine import Machine
from clipgguf.errors import CheckpointError

# A tensor takes about 32 opcodes and 150 to 400 bytes: this is enough for 15,000 tensors, and is done in half a second.
MOST_OPCODES = 500_000
LARGEST_PICKLE = 1 << 24


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
    machine = Machine(data, where, start)
    try:
        for _ in range(most_opcodes):
            opcode = data[machine.position]
            machine.position += 1
            if opcode == pickle.STOP[0]:
                return Unpickled(machine.stack.pop(), machine.storages, machine.position)
            operation = _OPERATIONS.get(opcode)
            if operation is None:
                raise RefusedError(f"uses the pickle opcode {_opcode_name(opcode)}, which no state dict needs; refused")
            operation(machine)
    except RefusedError as e:
        raise CheckpointError(f"{where} {e}") from e
    except (IndexError, KeyError, UnicodeDecodeError) as e:
        # An empty stack or the data's end, a memo entry that was never stored, a string that is no UTF-8.
        raise CheckpointError(f"{where} is truncated or damaged at its byte {machine.position:,}") from e
    raise CheckpointError(f"{where} has more than {most_opcodes:,} opcodes, far more than it should need")


def _push(value: object) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(value)


def _push_unsigned(length: int) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(machine.read_unsigned(length))


def _push_string(length_of_length: int) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(machine.read(machine.read_unsigned(length_of_length)).decode())


def _push_last(count: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        if len(machine.stack) < count:
            raise IndexError(count)
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return push


# Every opcode that there is for us. Protocol 2 is torch.save's own; protocol 4 on its user's wish adds the last four.
_OPERATIONS: Mapping[int, Callable[[Machine], None]] = {
    opcode[0]: operation
    for opcode, operation in (
        (pickle.PROTO, Machine.skip_version),
        (pickle.MARK, Machine.mark),
        (pickle.BINPUT, Machine.put),
        (pickle.LONG_BINPUT, Machine.put_long),
        (pickle.BINGET, Machine.get),
        (pickle.LONG_BINGET, Machine.get_long),
        (pickle.NONE, _push(None)),
        (pickle.NEWTRUE, _push(True)),
        (pickle.NEWFALSE, _push(False)),
        (pickle.BININT, Machine.push_signed),
        (pickle.BININT1, _push_unsigned(1)),
        (pickle.BININT2, _push_unsigned(2)),
        (pickle.LONG1, Machine.push_long),
        (pickle.BINFLOAT, Machine.push_float),
        (pickle.BINUNICODE, _push_string(4)),
        (pickle.SHORT_BINSTRING, _push_string(1)),  # A str of Python 2.
        (pickle.EMPTY_TUPLE, _push(())),
        (pickle.TUPLE1, _push_last(1)),
        (pickle.TUPLE2, _push_last(2)),
        (pickle.TUPLE3, _push_last(3)),
        (pickle.TUPLE, Machine.push_tuple),
        (pickle.EMPTY_LIST, Machine.push_list),
        (pickle.APPEND, Machine.append_one),
        (pickle.APPENDS, Machine.append_many),
        (pickle.EMPTY_DICT, Machine.push_dict),
        (pickle.SETITEM, Machine.set_one),
        (pickle.SETITEMS, Machine.set_many),
        (pickle.GLOBAL, Machine.find_global),
        (pickle.INST, Machine.instantiate),
        (pickle.REDUCE, Machine.call),
        (pickle.BUILD, Machine.build),
        (pickle.BINPERSID, Machine.refer_to_storage),
        (pickle.FRAME, Machine.skip_frame),
        (pickle.MEMOIZE, Machine.memoize),
        (pickle.SHORT_BINUNICODE, _push_string(1)),
        (pickle.STACK_GLOBAL, Machine.find_stacked_global),
    )
}


def _opcode_name(opcode: int) -> str:
    return next((known.name for known in pickletools.opcodes if known.code == chr(opcode)), f"{opcode:#04x} (unknown)")
