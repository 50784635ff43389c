"""The ctypes layer, without torch: the structs are the header's, the library is found, loaded and refuses in plain words.

Also runs alone: python3 -m unittest test_library.
"""

import ctypes
import os
import re
import unittest
from pathlib import Path
from unittest import mock

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


def loaded():
    try:
        return _library.Library(_library.shared_library_path())
    except ImportError as error:
        raise unittest.SkipTest(str(error)) from None


class Structs(unittest.TestCase):
    def test_fields(self):
        if not HEADER.exists():
            self.skipTest(f"there is no {HEADER}")
        text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
        for name, struct in STRUCTS.items():
            with self.subTest(name):
                body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", text, flags=re.DOTALL).group(1)
                expected = []
                for declaration in filter(None, map(str.strip, body.split(";"))):
                    kind, field = re.fullmatch(r"(?:const )?(\w+\s*\**)\s*(\w+)", declaration).groups()
                    expected.append((field, "pointer" if "*" in kind else TYPES[kind.strip()]))
                found = [(field, NAMES.get(kind, "pointer")) for field, kind in struct._fields_]
                self.assertEqual(found, expected)


class Loading(unittest.TestCase):
    def test_no_file(self):
        with mock.patch.dict(os.environ, {_library.ENVIRONMENT: "/nowhere/lib.so"}):
            with self.assertRaisesRegex(
                ImportError, "^onepass: there is no /nowhere/lib.so, which ONEPASS_ATTENTION_LIB"
            ):
                _library.shared_library_path()

    def test_no_gpu_of_that_number(self):
        with self.assertRaisesRegex(RuntimeError, "^(no NVIDIA (driver|GPU)|GPU 99: expected 0 to .*)$"):
            loaded().device_open(99, ctypes.byref(ctypes.c_void_p()))

    def test_refusals(self):
        library, params, kernel = loaded(), _library.AttentionParams(), ctypes.c_void_p()
        with self.assertRaisesRegex(ValueError, "^device: expected an address, found null$"):
            library.attention_choose(None, ctypes.byref(params), b"auto", ctypes.byref(kernel))
        appended = _library.AppendKvParams()
        appended.struct_size = 3
        with self.assertRaisesRegex(ValueError, "^device: expected an address, found null$"):
            library.append_kv(None, ctypes.byref(appended), None)


if __name__ == "__main__":
    unittest.main()
