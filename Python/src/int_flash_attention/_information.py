"""What this package and this machine are."""

from __future__ import annotations

import ctypes
from typing import NamedTuple, Tuple

from . import _abi


class Information(NamedTuple):
    """What :func:`info` returns; quote it in a bug report."""

    version: str
    """Version of the library."""
    instruction_set: str
    """What calls use: the fastest, or that of the environment variable ``INTFA_ISA``."""
    instruction_sets: Tuple[str, ...]
    """All that this machine has kernels for, the fastest last."""
    precisions: Tuple[str, ...]
    """Names of all recipes."""
    threads: int
    """Threads that a call uses unless told otherwise."""
    processors: int
    """Logical processors that the process may run on."""
    cores: int
    """Physical cores among them."""


def version() -> str:
    """The version of the library."""
    return _abi.library.intfa_version().decode()


def info() -> Information:
    """Version, instruction sets, precisions and threads.

    Raises:
        UnavailableError: ``INTFA_ISA`` names an instruction set that this machine does not have.
        InvalidArgumentError: ``INTFA_ISA`` names none.
    """
    found = _abi.Information()
    _abi.check(_abi.library.intfa_get_information(found))
    chosen = ctypes.c_char_p()
    _abi.check(_abi.library.intfa_get_instruction_set(chosen))
    return Information(
        version=version(),
        instruction_set=(chosen.value or b"").decode(),
        instruction_sets=tuple(found.instruction_sets.decode().split(",")),
        precisions=tuple(found.precisions.decode().split(",")),
        threads=found.thread_count,
        processors=found.processor_count,
        cores=found.core_count,
    )
