"""Keeps Ray's C++ code from ending the sweep's process.

If Ray loses its raylet or its server in the second in which it joins them, its C++ code calls `_Exit(1)`, which runs no
exit handler: the sweep would end with that exit code, without a sentence and without its report. So such a call is
redirected to a function that tells of it and never returns. The process's other threads end the sweep in order. They
can run only if Ray lets go of Python's GIL, which it holds while it joins, so the joining is redirected too, to a
function that releases the GIL and then joins.

A shared library calls exported functions through its global offset table (GOT), into which the dynamic linker enters
their addresses when it loads the library. This module replaces the entries of Ray's extension module. It knows the
table of 64-bit ELF files, as on Linux. Where it does not find what it expects, it changes nothing.
"""

import ctypes
import mmap
import struct
import sys
import threading
from collections.abc import Callable
from itertools import count, takewhile

_JOIN = b"_ZN3ray4core17CoreWorkerProcess10InitializeERKNS0_17CoreWorkerOptionsE"  # CoreWorkerProcess::Initialize
_EXITS = {b"_Exit", b"_exit", b"exit", b"abort"}

_LINK_MAP = 2  # RTLD_DI_LINKMAP in dlfcn.h
_STRINGS, _SYMBOLS, _CALLS, _CALLS_SIZE = 5, 6, 23, 2  # DT_STRTAB, DT_SYMTAB, DT_JMPREL and DT_PLTRELSZ in elf.h
_SYMBOL_SIZE = 24

_tell: Callable[[], None] = lambda: None  # noqa: E731
_functions: list[object] = []  # keeps C's functions alive for as long as the table points to them


def redirect(library: str, tell: Callable[[], None]) -> bool:
    """Makes the library call `tell` where it would end the process. Replaces an earlier `tell`. Returns whether that
    could be done."""
    global _tell
    _tell = tell
    if not _functions and sys.platform == "linux" and sys.maxsize > 2**32:
        places = _entries(library)
        if places.keys() >= {_JOIN, b"_Exit"}:
            joining, exiting = ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.CFUNCTYPE(None, ctypes.c_int)
            join = joining(ctypes.c_uint64.from_address(places[_JOIN]).value)  # ctypes releases the GIL in a call
            _functions.extend([joining(join), exiting(_wait_for_ever)])
            for name, place in places.items():
                _write(place, _functions[0] if name == _JOIN else _functions[1])
    return bool(_functions)


def _wait_for_ever(code: int) -> None:
    """Must not return, because its callers do not expect it."""
    while True:
        try:
            _tell()
            threading.Event().wait()
        except BaseException:  # raised by a signal handler, if this is the main thread
            continue


class _LinkMap(ctypes.Structure):
    """The first members of `struct link_map` in link.h."""

    _fields_ = (("base", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dynamic", ctypes.POINTER(ctypes.c_uint64)))


def _entries(library: str) -> dict[bytes, int]:
    """Where in memory the library's table has the addresses of the functions to be redirected."""
    found = ctypes.POINTER(_LinkMap)()
    dlinfo = ctypes.CDLL(None).dlinfo
    dlinfo.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    if dlinfo(ctypes.CDLL(library)._handle, _LINK_MAP, ctypes.byref(found)) != 0:
        return {}
    dynamic = found.contents.dynamic  # pairs of a tag and its value, up to the tag 0
    values = dict(takewhile(lambda pair: pair[0] != 0, ((dynamic[i], dynamic[i + 1]) for i in count(0, 2))))
    if not values.keys() >= {_STRINGS, _SYMBOLS, _CALLS, _CALLS_SIZE}:
        return {}
    entries = {}
    for offset, info, _ in struct.iter_unpack("<QQq", ctypes.string_at(values[_CALLS], values[_CALLS_SIZE])):
        position = ctypes.c_uint32.from_address(values[_SYMBOLS] + _SYMBOL_SIZE * (info >> 32)).value
        name = ctypes.string_at(values[_STRINGS] + position)
        if name == _JOIN or name in _EXITS:
            entries[name] = found.contents.base + offset
    return entries


def _write(place: int, function: object) -> None:
    """Writes an entry. The linker has made the table read-only (RELRO), so its page is made writable, and stays so."""
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if protect(place - place % mmap.PAGESIZE, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0:
        address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
        ctypes.c_uint64.from_address(place).value = address or 0
