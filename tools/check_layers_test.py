"""check_layers.py must accept a sound tree and refuse each violation planted in it."""

import tempfile
import unittest
from pathlib import Path

import check_layers

SOUND = {
    "base/CMakeLists.txt": "onepass_library(base SOURCES log.cc)",
    "base/log.h": "#pragma once\n",
    "base/log.cc": '#include "base/log.h"\n',
    "tensor/CMakeLists.txt": "onepass_library(tensor DEPENDS base)  # header-only",
    "tensor/dtype.h": '#include <vector>\n#include "base/log.h"\n',
    "kv_cache/CMakeLists.txt": "onepass_library(kv_cache SOURCES pool.cc DEPENDS tensor TESTS pool_test.cc)",
    "kv_cache/pool.h": '#include "tensor/dtype.h"\n',
    "kv_cache/pool.cc": '#include "kv_cache/pool.h"\n#include "base/log.h"\n',
    "kv_cache/pool_test.cc": '#include "kv_cache/pool.h"\n',
    "attention/CMakeLists.txt": (
        "onepass_library(attention_params SOURCES attention_params.cc DEPENDS tensor)\n"
        "add_subdirectory(reference)\nadd_subdirectory(cpu)\n"
        "onepass_library(attention DEPENDS attention/cpu kv_cache)\n"
    ),
    "attention/attention_params.h": '#include "tensor/dtype.h"\n',
    "attention/attention_params.cc": '#include "attention/attention_params.h"\n',
    "attention/backend.h": '#include "kv_cache/pool.h"\n#include "attention/cpu/flash.h"\n',
    "attention/reference/CMakeLists.txt": "onepass_library(attention/reference SOURCES naive.cc DEPENDS attention_params)",
    "attention/reference/naive.h": '#include "attention/attention_params.h"\n',
    "attention/reference/naive.cc": '#include "attention/reference/naive.h"\n',
    "attention/cpu/CMakeLists.txt": (
        "onepass_isa_sources(flash ISA)\n"
        "if(X)\n  set(EXTRA one.cc)\nelse()\n  set(EXTRA other.cc)\nendif()\n"
        "onepass_library(attention/cpu SOURCES flash.cc ${ISA} ${EXTRA} DEPENDS attention_params)\n"
        "onepass_test(flash_test SOURCES flash_test.cc DEPENDS attention/cpu attention/reference)\n"
    ),
    "attention/cpu/flash.h": '#include "attention/attention_params.h"\n',
    "attention/cpu/flash.cc": '#include "flash.h"\n',
    "attention/cpu/one.cc": "",
    "attention/cpu/other.cc": "",
    "attention/cpu/flash_portable.cc": "",
    "attention/cpu/flash_avx2.cc": "",
    "attention/cpu/flash_avx512.cc": "",
    "attention/cpu/flash_avx512bf16.cc": "",
    "attention/cuda/CMakeLists.txt": "onepass_library(attention/cuda SOURCES fast.cu DEPENDS attention_params)",
    "attention/cuda/tile.cuh": '#include <cuda_fp16.h>\n#include "attention/attention_params.h"\n',
    "attention/cuda/fast.cu": '#include "attention/cuda/tile.cuh"\n',
    "attention/cuda/testing/CMakeLists.txt": (
        "onepass_library(attention/cuda/testing DEPENDS attention/cuda attention/reference)"
    ),
    "attention/cuda/testing/compare.h": '#include "attention/reference/naive.h"\n',
    "attention/cpu/flash_test.cc": '#include "attention/cpu/flash.h"\n#include "attention/reference/naive.h"\n',
    "scheduler/CMakeLists.txt": "onepass_library(scheduler DEPENDS attention)",
    "scheduler/scheduler.h": '#include "attention/backend.h"\n',
    "scheduler/queue.h": "",
    "cli/CMakeLists.txt": "add_executable(onepass main.cc)\ntarget_link_libraries(onepass PRIVATE onepass_scheduler CLI11::CLI11)",
    "cli/main.cc": '#include <CLI/CLI.hpp>\n#include "scheduler/scheduler.h"\n#include "base/log.h"\n',
}


class CheckLayersTest(unittest.TestCase):
    def problems(self, files=None):
        """Of the sound tree with `files` (path under src/ -> text) put into it."""
        tree = {**SOUND, **(files or {})}
        with tempfile.TemporaryDirectory() as folder:
            for name, text in tree.items():
                path = Path(folder, "src", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return check_layers.check(folder)

    def assert_refused(self, files, *words):
        problems = self.problems(files=files)
        self.assertEqual(len(problems), 1, problems)
        for word in words:
            self.assertIn(word, problems[0])

    def test_accepts_a_sound_tree(self):
        self.assertEqual(self.problems(), [])

    def test_refuses_an_upward_include(self):
        self.assert_refused(
            {"base/log.cc": '\n#include "tensor/dtype.h"\n'}, "src/base/log.cc:2:", "tensor/ comes after it"
        )

    def test_refuses_an_upward_include_even_when_declared(self):
        self.assert_refused(
            {
                "tensor/CMakeLists.txt": "onepass_library(tensor DEPENDS base scheduler)",
                "tensor/dtype.h": '#include "scheduler/queue.h"\n',
            },
            "src/tensor/dtype.h:1:",
            "scheduler/ comes after it",
        )

    def test_refuses_an_edge_that_the_target_does_not_declare(self):
        self.assert_refused(
            {"kv_cache/CMakeLists.txt": "onepass_library(kv_cache SOURCES pool.cc DEPENDS base TESTS pool_test.cc)"},
            "src/kv_cache/pool.h:1:",
            "kv_cache does not declare tensor",
        )

    def test_refuses_an_undeclared_edge_of_a_program(self):
        self.assert_refused(
            {
                "cli/CMakeLists.txt": "add_executable(onepass main.cc)\ntarget_link_libraries(onepass PRIVATE onepass_base)"
            },
            "src/cli/main.cc:2:",
            "onepass does not declare scheduler",
        )

    def test_refuses_a_kernel_that_sees_the_cache(self):
        self.assert_refused({"attention/cpu/flash.cc": '#include "kv_cache/pool.h"\n'}, "the kernels see")

    def test_refuses_a_kernel_that_sees_another(self):
        self.assert_refused({"attention/cpu/flash.cc": '#include "attention/reference/naive.h"\n'}, "the kernels see")

    def test_refuses_a_gpu_kernel_that_sees_its_testing(self):
        self.assert_refused(
            {"attention/cuda/fast.cu": '#include "attention/cuda/testing/compare.h"\n'}, "does not declare"
        )

    def test_refuses_a_way_past_the_schedulers_door(self):
        self.assert_refused({"cli/main.cc": '#include "scheduler/queue.h"\n'}, "scheduler/ is entered by")

    def test_refuses_a_cycle(self):
        self.assert_refused(
            {
                "base/a.h": '#include "base/b.h"\n',
                "base/b.h": '#include "base/c.h"\n',
                "base/c.h": '#include "base/a.h"\n',
            },
            "include each other",
            "base/a.h -> base/b.h -> base/c.h -> base/a.h",
        )

    def test_refuses_a_header_that_includes_itself(self):
        self.assert_refused({"base/a.h": '#include "base/a.h"\n'}, "include each other", "base/a.h -> base/a.h")

    def test_refuses_an_orphan(self):
        self.assert_refused({"base/lost.cc": ""}, "src/base/lost.cc: no CMakeLists.txt names it")

    def test_refuses_an_unknown_room(self):
        self.assert_refused(
            {"misc/x.h": "", "base/log.cc": '#include "misc/x.h"\n'}, "misc/ is not in the list of rooms"
        )

    def test_refuses_a_header_that_is_not_there(self):
        self.assert_refused({"base/log.cc": '#include "base/gone.h"\n'}, "base/gone.h", "does not exist")

    def test_refuses_a_dependency_that_nobody_declares(self):
        self.assert_refused({"base/CMakeLists.txt": "onepass_library(base SOURCES log.cc DEPENDS bass)"}, '"bass"')

    def test_refuses_a_source_that_does_not_exist(self):
        self.assert_refused(
            {"tensor/CMakeLists.txt": "onepass_library(tensor SOURCES x.cc DEPENDS base)"}, "tensor/x.cc"
        )

    def test_reads_past_comments_and_libraries(self):
        commented = '// #include "cli/main.h"\n#include "absl/status/status.h"\n#include "base/log.h"  // why\n'
        self.assertEqual(self.problems(files={"base/log.cc": commented}), [])


if __name__ == "__main__":
    unittest.main()
