"""The machine of torch_pickle: what each opcode does to the stack and the memo."""

# ruff: noqa: D102, D107 - the operations are pickle's own, and pickletools describes them.

import struct

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

LARGEST_INT_KEY = 2**31 - 1


class Machine:
    """A pickle machine: the bytes and a position in them, a stack with marks, and a memo."""

    def __init__(self, data: bytes, where: str, start: int) -> None:
        self.data = data
        self.where = where
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

    def read_unsigned(self, length: int) -> int:
        """Return the next bytes as a little-endian number."""
        return int.from_bytes(self.read(length), "little")

    def read_line(self) -> str:
        """Return one of the two lines that name a global."""
        end = self.data.find(b"\n", self.position, self.position + LONGEST_TORCH_NAME)
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
                    f"asks for {name_text(f'{module}.{name}')}, a class of a TorchScript archive; "
                    "should be a state dict saved with torch.save"
                )
            raise RefusedError(
                f"asks for {name_text(f'{module}.{name}')}, which is nothing that a checkpoint of tensors needs; "
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
            raise RefusedError(f"refers to storage {name_text(storage.key)} twice, with different sizes")
        self.stack.append(storage)
