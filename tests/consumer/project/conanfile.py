# SPDX-License-Identifier: Apache-2.0
"""Tests the Conan package: conan create . --test-folder tests/consumer/project -o "&:mpi=True"."""

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout


class Consumer(ConanFile):
    settings = "os", "arch", "compiler", "build_type"

    def layout(self):
        cmake_layout(self, build_folder="../../../build-conan")

    def requirements(self):
        self.requires(self.tested_reference_str)

    def generate(self):
        options = self.dependencies["latpar"].options
        asked_for = [name for name in ("mpi", "cuda", "nccl") if getattr(options, name)]
        toolchain = CMakeToolchain(self)
        toolchain.user_presets_path = False
        toolchain.cache_variables["CONSUMER_COMPONENTS"] = ",".join(asked_for)
        toolchain.cache_variables["CONSUMER_MPIEXEC_FLAGS"] = "--allow-run-as-root --oversubscribe"
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def test(self):
        CMake(self).ctest(["--output-on-failure", "--no-tests=error"])
