"""A command for gdb that lists the loops and tasks of a process or of a core dump.

    gdb -batch -p PID -x tools/gdb/fastloop.py -ex fastloop
    gdb -batch -x tools/gdb/fastloop.py -ex fastloop PYTHON CORE

It needs the debug information of fastloop._core, which every build has, and none of Python or libuv. fastloop keeps no
list of its loops, so memory is searched: first for the types, by the functions that free their objects, then for types
derived from them, then for the objects.
"""

import re
import struct

import gdb

CHUNK = 16 << 20
STATES = ("pending", "cancelled", "finished")


class Memory:
    """The writable memory of the process: what may hold Python objects."""

    def __init__(self):
        self.inferior = gdb.selected_inferior()
        self.ranges = list(self.writable_ranges())

    def writable_ranges(self):
        try:
            maps = open(f"/proc/{self.inferior.pid}/maps")
        except OSError:
            maps = None
        if maps is not None and "core" not in gdb.execute("info target", to_string=True).split("\n")[0]:
            with maps:
                for line in maps:
                    match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
                    if match and "[vvar" not in line:
                        yield int(match[1], 16), int(match[2], 16)
            return
        # A core dump names its parts load1, load2, ...
        for line in gdb.execute("maintenance info sections", to_string=True).splitlines():
            match = re.search(r"0x([0-9a-f]+)->0x([0-9a-f]+) at \S+: load\S* .*HAS_CONTENTS", line)
            if match and "READONLY" not in line:
                yield int(match[1], 16), int(match[2], 16)

    def read(self, address, size):
        return bytes(self.inferior.read_memory(address, size))

    def word(self, address):
        return struct.unpack("=Q", self.read(address, 8))[0]

    def places_of(self, words):
        """{word: [address of each aligned word of this value]}, in one walk over the memory."""
        found = {word: [] for word in words}
        patterns = {struct.pack("=Q", word): places for word, places in found.items()}
        search = re.compile(b"|".join(re.escape(pattern) for pattern in patterns))
        for start, end in self.ranges:
            for chunk in range(start, end, CHUNK):
                try:
                    data = self.read(chunk, min(CHUNK, end - chunk))
                except gdb.MemoryError:
                    continue
                place = 0
                while match := search.search(data, place):
                    if match.start() % 8 == 0:
                        patterns[match[0]].append(chunk + match.start())
                        place = match.end()
                    else:
                        place = match.start() + 1
        return found


def offset_of(type_name, field):
    """Of a field, through nested structs without a name."""
    for member in gdb.lookup_type(type_name).strip_typedefs().fields():
        if member.name == field:
            return member.bitpos // 8
    raise gdb.GdbError(f"{type_name} has no field {field}")


class Finder:
    """The objects of some types, found by the functions that free them."""

    def __init__(self, memory):
        self.memory = memory
        self.type_offset = offset_of("PyObject", "ob_type")
        self.type_names = {}

    def objects(self, *functions):
        """{function: addresses of the objects of the type that it frees, and of types derived from that}."""
        memory = self.memory
        addresses = {self.address_of(name): name for name in functions}
        freeing = offset_of("PyTypeObject", "tp_dealloc")
        base = offset_of("PyTypeObject", "tp_base")
        kinds = {}
        for address, places in memory.places_of(addresses).items():
            for place in places:
                kinds[place - freeing] = addresses[address]
        self.kinds = set(kinds)
        # An object begins with its type, a derived type holds it as its base; three generations are looked for.
        objects = {name: set() for name in functions}
        pending = dict(kinds)
        for _ in range(4):
            derived = {}
            for kind, places in memory.places_of(pending).items() if pending else ():
                for place in places:
                    if place - base not in kinds and self.is_type(place - base):
                        derived[place - base] = pending[kind]
                    objects[pending[kind]].add(place - self.type_offset)
            pending = {kind: name for kind, name in derived.items() if kind not in kinds}
            kinds.update(pending)
        return objects

    @staticmethod
    def address_of(function):
        try:
            return int(gdb.parse_and_eval(f"(unsigned long)&{function}"))
        except gdb.error:
            raise gdb.GdbError("there is no fastloop._core with debug information in this process") from None

    def is_type(self, address):
        """Is its type's type `type`?"""
        try:
            kind = self.memory.word(address + self.type_offset)
            return kind == int(gdb.parse_and_eval("(unsigned long)&PyType_Type"))
        except gdb.error:
            return False

    def type_name(self, address):
        try:
            kind = self.memory.word(address + self.type_offset)
            if kind not in self.type_names:
                name = self.memory.word(kind + offset_of("PyTypeObject", "tp_name"))
                text = self.memory.read(name, 80).split(b"\0")[0].decode("latin-1")
                self.type_names[kind] = text if text.isprintable() else "?"
            return self.type_names[kind]
        except gdb.error:
            return "?"


def text_of(memory, finder, address):
    """The text of a str that is short and ASCII, or an int as the name of a task, else None."""
    try:
        name = finder.type_name(address) if address else None
        if name == "str":
            size = gdb.lookup_type("PyObject").sizeof
            length = memory.word(address + size)
            # The header of a compact ASCII string: length, hash, state (and up to 3.11 a pointer that is not used).
            for start in (size + 24, size + 32):
                data = memory.read(address + start, length + 1) if length < 500 else b""
                if data and data[-1] == 0 and data[:-1].isascii() and data[:-1].decode().isprintable():
                    return data[:-1].decode()
        if name == "int":
            size = gdb.lookup_type("PyObject").sizeof
            (number,) = struct.unpack("=I", memory.read(address + size + 8, 4))
            return f"Task-{number}"
    except gdb.error:
        pass
    return None


class FastloopCommand(gdb.Command):
    """List the loops of fastloop and the tasks of each."""

    def __init__(self):
        super().__init__("fastloop", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        Finder.address_of("Loop_dealloc")
        self.memory = Memory()
        self.finder = Finder(self.memory)
        found = self.finder.objects("Loop_dealloc", "Task_dealloc")
        self.loop_type = gdb.lookup_type("LoopObject").pointer()
        self.task_type = gdb.lookup_type("BaseTask").pointer()
        self.loops = [address for address in sorted(found["Loop_dealloc"]) if self.is_loop(address)]
        self.tasks = [address for address in sorted(found["Task_dealloc"]) if self.is_task(address)]
        for address in self.loops:
            self.show_loop(address)
        print(f"{len(self.loops)} loops, {len(self.tasks)} tasks")

    def at(self, address, kind):
        return gdb.Value(address).cast(kind).dereference()

    def is_loop(self, address):
        """Not memory that was one, or that only looks like one."""
        try:
            loop = self.at(address, self.loop_type)
            return int(loop["state"]["LoopType"]) in self.finder.kinds
        except gdb.error:
            return False

    def is_task(self, address):
        try:
            task = self.at(address, self.task_type)["fut"]
            return int(task["loop"]) in self.loops and int(task["state"]) < len(STATES)
        except gdb.error:
            return False

    def show_loop(self, address):
        loop = self.at(address, self.loop_type)
        thread = int(loop["thread_id"])
        state = "closed" if loop["closed"] else f"running in thread {thread:#x}" if thread else "not running"
        if not loop["closed"]:
            state += ", waits for events" if int(loop["inbox"]["waiting"]) else ""
        print(f"loop {address:#x} ({self.finder.type_name(address)}): {state}")
        print(f"    {int(loop['ready']['count'])} ready, {int(loop['timers']['count'])} timers")
        for stream in self.streams(loop):
            print(f"    descriptor {int(stream['fd'])}, transport {int(stream['owner']):#x}")
        for task in self.tasks:
            if int(self.at(task, self.task_type)["fut"]["loop"]) == address:
                print(f"    {self.describe(task)}")

    @staticmethod
    def streams(loop):
        stream = loop["io"]["streams"] if loop["io"] else 0
        for _ in range(100_000):
            if not stream:
                return
            yield stream.dereference()
            stream = stream["next"]

    def describe(self, address):
        task = self.at(address, self.task_type)
        name = text_of(self.memory, self.finder, int(task["name"])) or "?"
        waiter = int(task["fut_waiter"])
        waits = f", waits for {self.finder.type_name(waiter)} {waiter:#x}" if waiter else ""
        return (
            f"task {address:#x} {name}: {STATES[int(task['fut']['state'])]}, {self.coroutine(int(task['coro']))}{waits}"
        )

    def coroutine(self, address):
        """Its qualified name: of the words behind the header, the second one that is a str."""
        if not address:
            return "no coroutine"
        size = gdb.lookup_type("PyObject").sizeof
        names = [text_of(self.memory, self.finder, self.memory.word(address + size + 8 * i)) for i in range(4)]
        names = [name for name in names if name and not name.startswith("Task-")]
        return names[-1] if names else self.finder.type_name(address)


FastloopCommand()
