"""The structs of _library.py are those of include/onepass/attention.h, field by field."""

import ctypes
import re
from pathlib import Path

import pytest
from onepass import _library

HEADER = Path(__file__).parents[2] / "include/onepass/attention.h"
STRUCTS = {
    "onepass_attention_params": _library.AttentionParams,
    "onepass_part_stack": _library.PartStack,
    "onepass_merge_params": _library.MergeParams,
    "onepass_append_kv_params": _library.AppendKvParams,
}
TYPES = {"size_t": "Q", "int64_t": "q", "int32_t": "i", "float": "f"}
NAMES = {ctypes.c_size_t: "Q", ctypes.c_int64: "q", ctypes.c_int32: "i", ctypes.c_float: "f"}


@pytest.mark.skipif(not HEADER.exists(), reason="the header is not beside this folder")
@pytest.mark.parametrize("name", STRUCTS)
def test_fields(name):
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", text, flags=re.DOTALL).group(1)
    expected = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, field = re.fullmatch(r"(?:const )?(\w+\s*\**)\s*(\w+)", declaration).groups()
        expected.append((field, "pointer" if "*" in kind else TYPES[kind.strip()]))
    found = [(field, NAMES.get(kind, "pointer")) for field, kind in STRUCTS[name]._fields_]
    assert found == expected
