"""The structs of `_abi` against the headers, as a C compiler sees them."""

from __future__ import annotations

import ctypes
import pathlib
import re
import shutil
import subprocess

import pytest

import int_flash_attention
from int_flash_attention import _abi, _errors

HEADERS = pathlib.Path(__file__).parents[2] / "Sources/CIntFlashAttention/include"


def test_structs(tmp_path):
    compiler = shutil.which("cc") or shutil.which("clang") or shutil.which("gcc")
    assert compiler, "a C compiler is needed to read the headers"
    lines, expected = [], []
    for name, struct in _abi.STRUCTS.items():
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        expected.append((name, ctypes.sizeof(struct)))
        for field, _ in struct._fields_:
            lines.append(
                f'printf("%zu\\n", offsetof({name}, {field}) * 1000 + sizeof((({name} *)0)->{field}));'
            )
            member = getattr(struct, field)
            expected.append((f"{name}.{field}", member.offset * 1000 + member.size))
    constants = {"INTFA_FLOAT32": 1, "INTFA_FLOAT16": 2, "INTFA_BFLOAT16": 3, "INTFA_BOOL": 7}
    constants.update(INTFA_MASK_FULL=0, INTFA_MASK_CAUSAL=1, INTFA_MASK_SLIDING=2)
    constants.update(INTFA_ROTARY_HALF_SPLIT=0, INTFA_ROTARY_INTERLEAVED=1)
    for name, value in constants.items():
        lines.append(f'printf("%d\\n", {name});')
        expected.append((name, value))
    for status in range(0, 13):
        lines.append(f'printf("%d\\n", {status});')
        expected.append((str(status), status))
    source = tmp_path / "sizes.c"
    source.write_text(
        '#include "int_flash_attention.h"\n#include <stdio.h>\n'
        + "int main(void) {\n"
        + "\n".join(lines)
        + "\nreturn 0; }\n"
    )
    program = tmp_path / "sizes"
    subprocess.run(
        [compiler, "-std=c99", "-Wall", "-Werror", f"-I{HEADERS}", source, "-o", program],
        check=True,
    )
    found = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    assert [(name, int(x)) for (name, _), x in zip(expected, found)] == expected


def test_no_member_is_missing():
    text = "".join(path.read_text() for path in HEADERS.rglob("*.h"))
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    for name, struct in _abi.STRUCTS.items():
        body = text.split(f"typedef struct {name} {{")[1].split(f"}} {name};")[0]
        assert body.count(";") == len(struct._fields_), name


def test_every_status_has_an_error():
    _abi.library.intfa_status_name.restype = ctypes.c_char_p
    for status, kind in _abi._ERRORS.items():
        name = _abi.library.intfa_status_name(status).decode()
        assert name.replace("INTFA_", "").replace("_", "") == kind.__name__[: -len("Error")].upper()
    assert _abi.library.intfa_status_name(max(_abi._ERRORS) + 1) == b"unknown status"
    with pytest.raises(_errors.InternalError):
        _abi.check(999)


def test_everything_public_is_exported():
    errors = {name for name in vars(_errors) if name.endswith(("Error", "Warning"))}
    assert errors <= set(int_flash_attention.__all__)
    assert all(hasattr(int_flash_attention, name) for name in int_flash_attention.__all__)


def test_the_library_needs_nothing_but_the_system():
    path = pathlib.Path(_abi.__file__).parent / _abi.LIBRARY_NAME
    reader = shutil.which("readelf")
    assert reader, "readelf is needed to read what the library links"
    text = subprocess.run([reader, "-d", path], check=True, capture_output=True, text=True).stdout
    needed = {line.split("[")[1].split("]")[0] for line in text.splitlines() if "(NEEDED)" in line}
    system = (
        "libc.so",
        "libm.so",
        "libstdc++.so",
        "libgcc_s.so",
        "ld-linux",
        "libpthread",
        "libdl",
    )
    assert all(name.startswith(system) for name in needed), needed
    assert "RUNPATH" not in text or "$ORIGIN" in text
