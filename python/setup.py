"""Puts libonepass_attention.so into the package: the file that ONEPASS_ATTENTION_LIBRARY names, else the one in onepass/, else
one built by the project around this folder, which takes nvcc and the packages of script/setup."""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
NAME = "libonepass_attention.so"


def build_library() -> Path:
    root = HERE.parent
    if not (root / "src/attention/c_api").is_dir():
        raise SystemExit(
            f"onepass-attention: no {NAME}: name one in ONEPASS_ATTENTION_LIBRARY, or install from a checkout of onepass"
        )
    build = root / "build/python"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DONEPASS_CUDA=ON", "-DONEPASS_BUILD_TESTS=OFF"]
    subprocess.run(["cmake", "-G", "Ninja", "-S", root, "-B", build, *options], check=True)
    subprocess.run(["cmake", "--build", build, "--target", "onepass_attention_shared"], check=True)
    subprocess.run(
        ["cmake", "--install", build, "--component", "attention", "--prefix", build / "prefix", "--strip"], check=True
    )
    return next((build / "prefix").glob(f"lib*/**/{NAME}"))


def find_library() -> Path:
    named, beside = os.environ.get("ONEPASS_ATTENTION_LIBRARY"), HERE / "onepass" / NAME
    if named:
        if not Path(named).is_file():
            raise SystemExit(f"onepass-attention: ONEPASS_ATTENTION_LIBRARY: there is no file {Path(named).absolute()}")
        return Path(named)
    return beside if beside.is_file() else build_library()


class BuildWithLibrary(build_py):
    def run(self):
        super().run()
        folder = HERE / "onepass" if self.editable_mode else Path(self.build_lib) / "onepass"
        library, target = find_library(), folder / NAME
        if not (target.exists() and library.samefile(target)):
            shutil.copyfile(library, target)


class PlatformWheel(bdist_wheel):
    """For any Python 3, but this platform alone: the library is native and knows nothing of Python."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel})
