# SPDX-License-Identifier: GPL-2.0-only
"""Reading kernel memory safely through a BPF program (include/uapi/linux/bpf.h).

The program is a raw tracepoint that is attached to nothing and is run on demand (BPF_PROG_TEST_RUN,
which takes raw tracepoints since 1b4d60ec162f, Linux 5.10). It copies memory with
bpf_probe_read_kernel() into the value of an array map that user space has mapped. A bad address is
-EFAULT, and nothing else. No compiler and no library is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from typing import TYPE_CHECKING, Final, Self

from soak.abi.libc import LIBC, checked
from soak.abi.syscalls import syscall_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_BPF: Final = syscall_number("bpf")
_BPF_MAP_CREATE, _BPF_PROG_LOAD, _BPF_PROG_TEST_RUN = 0, 5, 10
_BPF_MAP_TYPE_ARRAY: Final = 2
_BPF_F_MMAPABLE: Final = 1 << 10
_BPF_PROG_TYPE_RAW_TRACEPOINT: Final = 17
_BPF_PSEUDO_MAP_VALUE: Final = 2
_BPF_FUNC_probe_read_kernel: Final = 113
# Every instruction that it looks at, and why it refuses one (log_level of union bpf_attr).
_LOG_LEVEL, _LOG_SIZE, _LOG_LINES = 1, 1 << 20, 5
_LICENSE = ctypes.create_string_buffer(b"GPL")  # the helper is for GPL programs only

_LDX_DW, _LDX_W, _STX_DW, _LD_IMM64 = 0x79, 0x61, 0x7B, 0x18
_MOV64, _ADD64, _SUB64, _AND64 = 0xBF, 0x0F, 0x1F, 0x5F
_MOV64_IMM, _ADD64_IMM, _MUL64_IMM, _ARSH64_IMM = 0xB7, 0x07, 0x27, 0xC7
_JUMP, _JEQ_IMM, _JLE, _JLE_IMM, _CALL, _EXIT = 0x05, 0x15, 0xBD, 0xB5, 0x85, 0x95
_R0, _R1, _R2, _R3, _R4, _R5, _R6, _R7, _R8, _R9 = range(10)


class _Program:
    """A program with one map, whose value `data` shows, run with words as its context."""

    def __init__(self, size: int, code: Callable[[int], Iterable[bytes]], words: int) -> None:
        """Load what `code` returns for the descriptor of the map.

        Raises:
            OSError: the kernel has no BPF, or forbids it.
        """
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        create = struct.pack("<5I", _BPF_MAP_TYPE_ARRAY, 4, room, 1, _BPF_F_MMAPABLE)
        self._map = _bpf(_BPF_MAP_CREATE, bytearray(create), "BPF_MAP_CREATE")
        try:
            self._memory = mmap.mmap(self._map, room)
            self._program = load_program(b"".join(code(self._map)))
        except BaseException:
            os.close(self._map)
            raise
        self.data = memoryview(self._memory)[:size]
        self._context = (ctypes.c_uint64 * words)()
        # prog_fd, retval, data sizes in and out, data in and out, repeat, duration, context sizes in
        # and out, context in and out, flags, cpu.
        self._run = bytearray(
            struct.pack(
                "<4I2Q4I2Q2I",
                self._program,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                ctypes.sizeof(self._context),
                0,
                ctypes.addressof(self._context),
                0,
                0,
                0,
            )
        )

    def run(self, *words: int) -> None:
        """Run the program; the first word is the kernel address that it reads.

        Raises:
            OSError: EFAULT, there is no memory at that address.
        """
        self._context[:] = list(words)
        _bpf(_BPF_PROG_TEST_RUN, self._run, "BPF_PROG_TEST_RUN")
        result = struct.unpack_from("<i", self._run, 4)[0]
        if result < 0:
            raise OSError(-result, os.strerror(-result), f"kernel address {words[0]:#x}")

    def close(self) -> None:
        self.data.release()
        self._memory.close()
        os.close(self._program)
        os.close(self._map)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class KernelReader(_Program):
    """Copies pieces of `size` bytes of kernel memory into `data`.

    Needs CAP_BPF and CAP_PERFMON, and a kernel that is not locked down for confidentiality.
    """

    def __init__(self, size: int) -> None:
        """Load the program.

        Raises:
            OSError: the kernel has no BPF, or forbids it.
        """
        super().__init__(size, lambda descriptor: _copying(descriptor, size), 1)

    def read(self, address: int) -> memoryview[int]:
        """Copy the `size` bytes at `address` and return `data`, which the next call overwrites.

        Raises:
            OSError: EFAULT, there is no memory at that address.
        """
        self.run(address)
        return self.data


class KernelSummer(_Program):
    """Adds up 32-bit words that lie in kernel memory at equal distances, one in each record.

    The kernel itself adds, and only sum and largest come out: interpreted, adding costs ten times what
    copying does. Records are copied before they are looked at, because a copy is what a bad address
    cannot hurt. Loops are allowed since 2589726d12a1 (Linux 5.3).
    """

    MOST: Final = 1024  # the verifier goes through each round of the loop, and keeps 8,192 branches

    def __init__(self, record: int, offset: int) -> None:
        """Load the program, for records of `record` bytes with the word at `offset`.

        Raises:
            OSError: the kernel has no BPF, or forbids it.
        """
        copied = self.MOST * record
        super().__init__(
            copied + 16, lambda descriptor: _adding(descriptor, record, offset, self.MOST), 2
        )
        self._sums = self.data[copied:].cast("Q")

    def add(self, address: int, count: int) -> tuple[int, int]:
        """Return sum and largest of the words in the first `count` records, at most `MOST`.

        Raises:
            OSError: EFAULT, there is no memory at that address; EINVAL, there are too many.
        """
        self.run(address, count)
        return self._sums[0], self._sums[1]

    def close(self) -> None:
        self._sums.release()
        super().close()


def _copying(descriptor: int, size: int) -> Iterator[bytes]:
    yield _instruction(_LDX_DW, _R3, _R1, 0, 0)  # the address, from the context
    yield from _map_value(_R1, descriptor)
    yield _instruction(_MOV64_IMM, _R2, 0, 0, size)
    yield _instruction(_CALL, 0, 0, 0, _BPF_FUNC_probe_read_kernel)
    yield _instruction(_EXIT, 0, 0, 0, 0)


def _adding(descriptor: int, record: int, offset: int, most: int) -> Iterator[bytes]:
    """Copy the records, then go through the copy; the largest is found without a branch.

    A branch in each round would double what the verifier has to go through.
    """
    yield _instruction(_LDX_DW, _R3, _R1, 0, 0)  # address and count, from the context
    yield _instruction(_LDX_DW, _R7, _R1, 8, 0)
    yield _instruction(_MOV64_IMM, _R0, 0, 0, -errno.EINVAL)
    yield _instruction(_JLE_IMM, _R7, 0, 1, most)
    yield _instruction(_EXIT, 0, 0, 0, 0)
    yield from _map_value(_R6, descriptor)
    yield _instruction(_MOV64, _R1, _R6, 0, 0)
    yield _instruction(_MOV64, _R2, _R7, 0, 0)
    yield _instruction(_MUL64_IMM, _R2, 0, 0, record)
    yield _instruction(_CALL, 0, 0, 0, _BPF_FUNC_probe_read_kernel)
    yield _instruction(_JEQ_IMM, _R0, 0, 1, 0)
    yield _instruction(_EXIT, 0, 0, 0, 0)
    yield _instruction(_MOV64, _R8, _R6, 0, 0)
    for register in (_R1, _R2, _R3):  # sum, largest, number of the record
        yield _instruction(_MOV64_IMM, register, 0, 0, 0)
    loop = (
        _instruction(_LDX_W, _R4, _R8, offset, 0),
        _instruction(_ADD64, _R1, _R4, 0, 0),
        # r2 - min(r2 - r4, 0), where the sign that is shifted in masks what is positive.
        _instruction(_MOV64, _R5, _R2, 0, 0),
        _instruction(_SUB64, _R5, _R4, 0, 0),
        _instruction(_MOV64, _R9, _R5, 0, 0),
        _instruction(_ARSH64_IMM, _R9, 0, 0, 63),
        _instruction(_AND64, _R5, _R9, 0, 0),
        _instruction(_SUB64, _R2, _R5, 0, 0),
        _instruction(_ADD64_IMM, _R8, 0, 0, record),
        _instruction(_ADD64_IMM, _R3, 0, 0, 1),
    )
    yield _instruction(_JLE, _R7, _R3, len(loop) + 1, 0)  # enough of them
    yield from loop
    yield _instruction(_JUMP, 0, 0, -len(loop) - 2, 0)
    yield _instruction(_ADD64_IMM, _R6, 0, 0, most * record)  # the results lie behind the copy
    yield _instruction(_STX_DW, _R6, _R1, 0, 0)
    yield _instruction(_STX_DW, _R6, _R2, 8, 0)
    yield _instruction(_EXIT, 0, 0, 0, 0)


def _map_value(register: int, descriptor: int) -> Iterator[bytes]:
    yield _instruction(_LD_IMM64, register, _BPF_PSEUDO_MAP_VALUE, 0, descriptor)
    yield _instruction(0, 0, 0, 0, 0)


def load_program(code: bytes) -> int:
    """Load a program for a raw tracepoint and return its descriptor.

    Raises:
        OSError: the kernel has no BPF or forbids it; or refuses the program: the verifier says why.
    """
    buffer = ctypes.create_string_buffer(code, len(code))
    attributes = struct.pack(
        "<2I2Q",
        _BPF_PROG_TYPE_RAW_TRACEPOINT,
        len(code) // 8,
        ctypes.addressof(buffer),
        ctypes.addressof(_LICENSE),
    )
    try:
        return _bpf(_BPF_PROG_LOAD, bytearray(attributes), "BPF_PROG_LOAD")
    except OSError as error:
        raise OSError(error.errno, error.strerror, _verifier_log(attributes)) from None


def _verifier_log(attributes: bytes) -> str:
    """Have the verifier look at a program again, and return the end of what it says to it."""
    log = ctypes.create_string_buffer(_LOG_SIZE)
    told = attributes + struct.pack("<2IQ", _LOG_LEVEL, _LOG_SIZE, ctypes.addressof(log))
    with contextlib.suppress(OSError):
        os.close(_bpf(_BPF_PROG_LOAD, bytearray(told), "BPF_PROG_LOAD"))
    lines = log.value.decode(errors="replace").splitlines()
    return "; ".join(["BPF_PROG_LOAD", *lines[-_LOG_LINES:]])


def _instruction(code: int, destination: int, source: int, offset: int, immediate: int) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | destination, offset, immediate)


def _bpf(command: int, attributes: bytearray, what: str) -> int:
    # The kernel writes results back into the attributes: hand it the bytes themselves, not a copy.
    room = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    return checked(LIBC.syscall(_BPF, command, ctypes.byref(room), len(attributes)), what)
