"""Reading kernel memory safely through a BPF program (include/uapi/linux/bpf.h).

The program is a raw tracepoint that is attached to nothing and is run on demand (BPF_PROG_TEST_RUN,
which takes raw tracepoints since 1b4d60ec162f, Linux 5.10). It copies memory with
bpf_probe_read_kernel() into the value of an array map that user space has mapped. A bad address is
-EFAULT, and nothing else. No compiler and no library is needed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import Final, Self

from soak.abi.libc import LIBC, checked

_SYS_BPF: Final = 321  # arch/x86/entry/syscalls/syscall_64.tbl
_MAP_CREATE, _PROG_LOAD, _PROG_TEST_RUN = 0, 5, 10
_MAP_TYPE_ARRAY: Final = 2
_F_MMAPABLE: Final = 1 << 10
_PROG_TYPE_RAW_TRACEPOINT: Final = 17
_PSEUDO_MAP_VALUE: Final = 2
_FUNC_PROBE_READ_KERNEL: Final = 113
_LICENSE = ctypes.create_string_buffer(b"GPL")  # the helper is for GPL programs only

_LDX_DW, _LD_IMM64, _MOV64_IMM, _CALL, _EXIT = 0x79, 0x18, 0xB7, 0x85, 0x95
_R1, _R2, _R3 = 1, 2, 3


class KernelReader:
    """Copies pieces of `size` bytes of kernel memory into `data`.

    Needs CAP_BPF and CAP_PERFMON, and a kernel that is not locked down for confidentiality.
    """

    def __init__(self, size: int) -> None:
        """Load the program.

        Raises:
            OSError: the kernel has no BPF, or forbids it.
        """
        self.size = size
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        create = struct.pack("<5I", _MAP_TYPE_ARRAY, 4, room, 1, _F_MMAPABLE)
        self._map = _bpf(_MAP_CREATE, bytearray(create), "BPF_MAP_CREATE")
        try:
            self._memory = mmap.mmap(self._map, room)
            self._program = self._load()
        except BaseException:
            os.close(self._map)
            raise
        self.data = memoryview(self._memory)[:size]
        self._context = ctypes.c_uint64()
        # prog_fd, retval, data sizes in and out, data in and out, repeat, duration, context sizes in
        # and out, context in and out, flags, cpu.
        self._run = bytearray(
            struct.pack(
                "<4I2Q4I2Q2I",
                *(self._program, 0, 0, 0, 0, 0, 0, 0, ctypes.sizeof(self._context), 0),
                *(ctypes.addressof(self._context), 0, 0, 0),
            )
        )

    def read(self, address: int) -> memoryview[int]:
        """Copy the `size` bytes at `address` and return `data`, which the next call overwrites.

        Raises:
            OSError: EFAULT, there is no memory at that address.
        """
        self._context.value = address
        _bpf(_PROG_TEST_RUN, self._run, "BPF_PROG_TEST_RUN")
        result = struct.unpack_from("<i", self._run, 4)[0]
        if result < 0:
            raise OSError(-result, os.strerror(-result), f"kernel address {address:#x}")
        return self.data

    def close(self) -> None:
        self.data.release()
        self._memory.close()
        os.close(self._program)
        os.close(self._map)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> int:
        code = b"".join(
            (
                _instruction(_LDX_DW, _R3, _R1, 0, 0),  # the address, from the context
                _instruction(_LD_IMM64, _R1, _PSEUDO_MAP_VALUE, 0, self._map),
                _instruction(0, 0, 0, 0, 0),
                _instruction(_MOV64_IMM, _R2, 0, 0, self.size),
                _instruction(_CALL, 0, 0, 0, _FUNC_PROBE_READ_KERNEL),
                _instruction(_EXIT, 0, 0, 0, 0),
            )
        )
        buffer = ctypes.create_string_buffer(code, len(code))
        attributes = struct.pack(
            "<2I2Q",
            *(_PROG_TYPE_RAW_TRACEPOINT, len(code) // 8),
            *(ctypes.addressof(buffer), ctypes.addressof(_LICENSE)),
        )
        return _bpf(_PROG_LOAD, bytearray(attributes), "BPF_PROG_LOAD")


def _instruction(code: int, destination: int, source: int, offset: int, immediate: int) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | destination, offset, immediate)


def _bpf(command: int, attributes: bytearray, what: str) -> int:
    # The kernel writes results back into the attributes: hand it the bytes themselves, not a copy.
    room = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    return checked(LIBC.syscall(_SYS_BPF, command, ctypes.byref(room), len(attributes)), what)
