# SPDX-License-Identifier: GPL-2.0-only
"""Read kernel memory safely through a BPF program (include/uapi/linux/bpf.h).

The program is an unattached raw tracepoint that BPF_PROG_TEST_RUN runs on demand (raw tracepoints
since 1b4d60ec162f, Linux 5.10). It copies memory with bpf_probe_read_kernel() into the value of an
array map that user space has mapped. A bad address only returns -EFAULT. This needs no compiler and
no library.
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
# BPF_LOG_LEVEL1: the verifier logs each instruction and why it rejects one.
_LOG_LEVEL, _LOG_SIZE, _LOG_LINES = 1, 1 << 20, 5
_LICENSE = ctypes.create_string_buffer(b"GPL")  # the helper is for GPL programs only

_LDX_DW, _LDX_W, _STX_DW, _LD_IMM64 = 0x79, 0x61, 0x7B, 0x18
_MOV64, _ADD64, _SUB64, _AND64 = 0xBF, 0x0F, 0x1F, 0x5F
_MOV64_IMM, _ADD64_IMM, _MUL64_IMM, _ARSH64_IMM = 0xB7, 0x07, 0x27, 0xC7
_JUMP, _JEQ_IMM, _JLE, _JLE_IMM, _CALL, _EXIT = 0x05, 0x15, 0xBD, 0xB5, 0x85, 0x95
_R0, _R1, _R2, _R3, _R4, _R5, _R6, _R7, _R8, _R9 = range(10)


class _Program:
    """A loaded program and its one map: `data` is the map's value, `run` passes the context."""

    def __init__(self, size: int, code: Callable[[int], Iterable[bytes]], words: int) -> None:
        """Create the map and load the program that `code` returns for its descriptor.

        Args:
            size: bytes of the map's value.
            code: returns the instructions, given the map's descriptor.
            words: number of 64-bit words in the context.

        Raises:
            OSError: the kernel lacks BPF, or forbids it.
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
        """Run the program with `words` as its context; the first is the kernel address to read.

        Raises:
            OSError: EFAULT if the address is not mapped.
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
    """Copies `size` bytes of kernel memory at a time into `data`.

    Needs CAP_BPF and CAP_PERFMON, and a kernel without lockdown=confidentiality.
    """

    def __init__(self, size: int) -> None:
        """Load the program.

        Raises:
            OSError: the kernel lacks BPF, or forbids it.
        """
        super().__init__(size, lambda descriptor: _copying(descriptor, size), 1)

    def read(self, address: int) -> memoryview[int]:
        """Copy `size` bytes at `address` into `data` and return it; the next call overwrites it.

        Raises:
            OSError: EFAULT if the address is not mapped.
        """
        self.run(address)
        return self.data


class KernelSummer(_Program):
    """Sums one 32-bit word of each record in an array of records in kernel memory.

    The kernel computes sum and maximum, because adding in Python costs ten times what copying does.
    The program copies the records first: a copy from a bad address fails, a direct load would fault.
    The verifier accepts loops since 2589726d12a1 (Linux 5.3).
    """

    MOST: Final = 1024  # the verifier walks each iteration of the loop, and limits jumps to 8,192

    def __init__(self, record: int, offset: int) -> None:
        """Load the program for records of `record` bytes with the word at byte `offset`.

        Raises:
            OSError: the kernel lacks BPF, or forbids it.
        """
        copied = self.MOST * record
        super().__init__(
            copied + 16, lambda descriptor: _adding(descriptor, record, offset, self.MOST), 2
        )
        self._sums = self.data[copied:].cast("Q")

    def add(self, address: int, count: int) -> tuple[int, int]:
        """Return sum and maximum of the words in the first `count` records at `address`.

        Raises:
            OSError: EFAULT if the records are not mapped, EINVAL if `count` exceeds `MOST`.
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
    """Copy the records, then walk the copy; compute the maximum without a branch.

    A branch in each iteration would double the paths that the verifier explores.
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
    for register in (_R1, _R2, _R3):  # sum, maximum, record index
        yield _instruction(_MOV64_IMM, register, 0, 0, 0)
    loop = (
        _instruction(_LDX_W, _R4, _R8, offset, 0),
        _instruction(_ADD64, _R1, _R4, 0, 0),
        # r2 - min(r2 - r4, 0): the arithmetic shift yields a mask that is 0 for a positive difference.
        _instruction(_MOV64, _R5, _R2, 0, 0),
        _instruction(_SUB64, _R5, _R4, 0, 0),
        _instruction(_MOV64, _R9, _R5, 0, 0),
        _instruction(_ARSH64_IMM, _R9, 0, 0, 63),
        _instruction(_AND64, _R5, _R9, 0, 0),
        _instruction(_SUB64, _R2, _R5, 0, 0),
        _instruction(_ADD64_IMM, _R8, 0, 0, record),
        _instruction(_ADD64_IMM, _R3, 0, 0, 1),
    )
    yield _instruction(_JLE, _R7, _R3, len(loop) + 1, 0)  # all records summed
    yield from loop
    yield _instruction(_JUMP, 0, 0, -len(loop) - 2, 0)
    yield _instruction(_ADD64_IMM, _R6, 0, 0, most * record)  # the results follow the copy
    yield _instruction(_STX_DW, _R6, _R1, 0, 0)
    yield _instruction(_STX_DW, _R6, _R2, 8, 0)
    yield _instruction(_EXIT, 0, 0, 0, 0)


def _map_value(register: int, descriptor: int) -> Iterator[bytes]:
    yield _instruction(_LD_IMM64, register, _BPF_PSEUDO_MAP_VALUE, 0, descriptor)
    yield _instruction(0, 0, 0, 0, 0)


def load_program(code: bytes) -> int:
    """Load a raw tracepoint program and return its descriptor.

    Raises:
        OSError: the kernel lacks BPF, forbids it, or rejects the program; `filename` ends with the
            verifier's last lines.
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
    """Load a rejected program again with a log buffer; return the last lines of the log."""
    log = ctypes.create_string_buffer(_LOG_SIZE)
    with_log = attributes + struct.pack("<2IQ", _LOG_LEVEL, _LOG_SIZE, ctypes.addressof(log))
    with contextlib.suppress(OSError):
        os.close(_bpf(_BPF_PROG_LOAD, bytearray(with_log), "BPF_PROG_LOAD"))
    lines = log.value.decode(errors="replace").splitlines()
    return "; ".join(["BPF_PROG_LOAD", *lines[-_LOG_LINES:]])


def _instruction(code: int, destination: int, source: int, offset: int, immediate: int) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | destination, offset, immediate)


def _bpf(command: int, attributes: bytearray, what: str) -> int:
    # The kernel writes results into the attributes: pass the buffer itself, not a copy.
    room = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    return checked(LIBC.syscall(_BPF, command, ctypes.byref(room), len(attributes)), what)
