# SPDX-License-Identifier: Apache-2.0
"""The Conan 2 recipe: one component for each CMake target, under the same names."""

import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir


class Latpar(ConanFile):
    name = "latpar"
    description = "Parallelism policies around a user-supplied denoiser"
    license = "Apache-2.0"
    topics = ("diffusion", "video", "parallelism", "mpi", "cuda", "nccl")
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {
        "shared": [True, False],
        "fPIC": [True, False],
        "mpi": [True, False],
        # The toolkit and NCCL are the machine's own: there are no packages of them to require.
        "cuda": [True, False],
        "nccl": [True, False],
    }
    default_options = {"shared": False, "fPIC": True, "mpi": False, "cuda": False, "nccl": False}
    implements = ["auto_shared_fpic"]
    exports_sources = "CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "src/*", "cuda/*"

    def set_version(self):
        header = load(self, f"{self.recipe_folder}/include/latpar/version.hpp")
        self.version = ".".join(
            re.search(rf"LATPAR_VERSION_{part} (\d+)", header).group(1) for part in ("MAJOR", "MINOR", "PATCH")
        )

    def layout(self):
        cmake_layout(self)

    def validate(self):
        check_min_cppstd(self, 20)

    def requirements(self):
        if self.options.mpi:
            # Its header calls MPI itself.
            self.requires("openmpi/4.1.6", transitive_headers=True, transitive_libs=True)

    def build_requirements(self):
        # Compiled in; neither the headers nor a consumer's link line know of it.
        self.test_requires("nlohmann_json/[>=3.10 <4]")

    def generate(self):
        toolchain = CMakeToolchain(self)
        for component in ("mpi", "cuda", "nccl"):
            chosen = "ON" if getattr(self.options, component) else "OFF"
            toolchain.cache_variables[f"LATPAR_ENABLE_{component.upper()}"] = chosen
        if self.options.cuda:
            # CMake 3.25 does not know that nvcc speaks C++20, and would demand it; latpar asks for it itself.
            toolchain.blocks.remove("cppstd")
        for part in ("TESTS", "EXAMPLES", "BENCHMARKS", "DOCS"):
            toolchain.cache_variables[f"LATPAR_BUILD_{part}"] = False
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, f"{self.package_folder}/licenses")
        # Conan writes the package configuration itself, from package_info().
        rmdir(self, f"{self.package_folder}/lib/cmake")
        if self.options.cuda or self.options.nccl:
            for module in ("FindNCCL.cmake", "latpar-conan-cuda.cmake"):
                copy(self, module, f"{self.source_folder}/cmake", f"{self.package_folder}/lib/cmake/latpar")

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "latpar")
        # The target of the whole package, or the component's own name would mean both.
        self.cpp_info.set_property("cmake_target_name", "latpar::everything")
        library = self.cpp_info.components["latpar"]
        library.set_property("cmake_target_name", "latpar::latpar")
        library.libs = ["latpar"]
        if self.settings.os == "Linux":
            library.system_libs = ["pthread", "m"]
        if self.options.mpi:
            mpi = self.cpp_info.components["mpi"]
            mpi.set_property("cmake_target_name", "latpar::mpi")
            mpi.libs = ["latpar_mpi"]
            # Its C interface serves, as in CMakeLists.txt.
            mpi.defines = ["MPICH_SKIP_MPICXX", "OMPI_SKIP_MPICXX", "_MPICC_H"]
            mpi.requires = ["latpar", "openmpi::openmpi"]
        for name in ("cuda", "nccl"):
            if getattr(self.options, name):
                component = self.cpp_info.components[name]
                component.set_property("cmake_target_name", f"latpar::{name}")
                component.libs = [f"latpar_{name}"]
                component.requires = ["latpar"]
        if self.options.cuda or self.options.nccl:
            self.cpp_info.set_property("cmake_build_modules", ["lib/cmake/latpar/latpar-conan-cuda.cmake"])
