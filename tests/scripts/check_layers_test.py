# SPDX-License-Identifier: Apache-2.0
"""Tests of scripts/check_layers.py: a small tree that keeps every rule, and one breach of each."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_layers.py"

GOOD = {
    "version.hpp": [],
    "core/view.hpp": ["cstddef"],
    "core/memory.hpp": ["latpar/core/view.hpp", "memory_resource"],
    "comm/communicator.hpp": ["latpar/core/view.hpp"],
    "comm/collectives.hpp": ["latpar/comm/communicator.hpp"],
    "comm/thread_team.hpp": ["latpar/comm/communicator.hpp", "thread"],
    "comm/mesh.hpp": ["latpar/comm/communicator.hpp"],
    "kernel/kernel_set.hpp": ["latpar/core/view.hpp"],
    "kernel/reference.hpp": ["latpar/kernel/kernel_set.hpp"],
    "schedule/scheduler.hpp": ["latpar/kernel/kernel_set.hpp"],
    "step/plan.hpp": ["latpar/comm/collectives.hpp"],
    "step/policy.hpp": ["latpar/step/plan.hpp", "latpar/schedule/scheduler.hpp"],
    "loop/rounds.hpp": ["latpar/comm/collectives.hpp"],
    "compose/plan.hpp": ["latpar/step/policy.hpp", "latpar/loop/rounds.hpp", "latpar/comm/mesh.hpp"],
    "mpi/communicator.hpp": ["latpar/comm/communicator.hpp", "mpi.h"],
}


class CheckLayers(unittest.TestCase):
    def check(self, changes=None, files=None):
        """Exit status and output for the good tree with some headers' includes changed."""
        tree = {**GOOD, **(changes or {})}
        umbrella = [f"latpar/{name}" for name in tree if not name.startswith(("mpi/", "cuda/", "latpar.hpp"))]
        tree.setdefault("latpar.hpp", umbrella)
        with tempfile.TemporaryDirectory() as folder:
            texts = {
                f"include/latpar/{name}": "#pragma once\n" + "".join(f"#include <{line}>\n" for line in includes)
                for name, includes in tree.items()
            }
            for name, text in {**texts, **(files or {})}.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            run = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True)
            self.assertEqual(run.stderr, "")
            return run.returncode, run.stdout

    def assert_breach(self, line, changes=None, files=None):
        status, output = self.check(changes, files)
        self.assertEqual(status, 1)
        self.assertIn(line, output.splitlines())
        self.assertIn(" 1 breaches", output)

    def test_a_good_tree_passes(self):
        self.assertEqual(self.check(), (0, f"layers: {len(GOOD) + 1} headers, 0 breaches\n"))

    def test_a_tree_without_headers_fails(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(subprocess.run([sys.executable, SCRIPT, folder], stdout=subprocess.PIPE).returncode, 1)

    def test_core_includes_the_standard_library_only(self):
        self.assert_breach(
            "include/latpar/core/view.hpp: includes <vulkan.h>: layer 0 includes the standard library only",
            {"core/view.hpp": ["vulkan.h"]},
        )

    def test_a_lower_layer_never_includes_a_higher_one(self):
        self.assert_breach(
            "include/latpar/core/memory.hpp: includes <latpar/comm/communicator.hpp>: layer 0 never includes layer 1",
            {"core/memory.hpp": ["latpar/comm/communicator.hpp"]},
        )
        self.assert_breach(
            "include/latpar/schedule/scheduler.hpp: includes <latpar/comm/mesh.hpp>: layer 1 never includes layer 2",
            {"schedule/scheduler.hpp": ["latpar/comm/mesh.hpp"]},
        )

    def test_layer_two_stays_within_one_folder(self):
        self.assert_breach(
            "include/latpar/loop/serial.hpp: includes <latpar/step/policy.hpp>: "
            "layer 2 includes its own layer within one folder only",
            {"loop/serial.hpp": ["latpar/step/policy.hpp"]},
        )

    def test_compositions_include_policies_of_several_folders_but_no_backend(self):
        self.assert_breach(
            "include/latpar/compose/nest.hpp: includes <latpar/comm/thread_team.hpp>: a policy never includes a backend",
            {"compose/nest.hpp": ["latpar/step/policy.hpp", "latpar/comm/thread_team.hpp"]},
        )

    def test_a_policy_never_includes_a_backend(self):
        for backend in ("comm/thread_team.hpp", "kernel/reference.hpp", "mpi/communicator.hpp"):
            self.assert_breach(
                f"include/latpar/step/policy.hpp: includes <latpar/{backend}>: a policy never includes a backend",
                {"step/policy.hpp": [f"latpar/{backend}"]},
            )

    def test_backends_never_include_each_other(self):
        self.assert_breach(
            "include/latpar/cuda/kernels.hpp: includes <latpar/mpi/communicator.hpp>: "
            "backends never include each other",
            {"cuda/kernels.hpp": ["latpar/mpi/communicator.hpp"]},
        )

    def test_layer_three_includes_layers_zero_and_one(self):
        self.assert_breach(
            "include/latpar/mpi/communicator.hpp: includes <latpar/comm/mesh.hpp>: "
            "layer 3 includes layers 0 and 1 only",
            {"mpi/communicator.hpp": ["latpar/comm/mesh.hpp"]},
        )

    def test_mpi_belongs_to_its_folder(self):
        self.assert_breach(
            "include/latpar/step/policy.hpp: includes <mpi.h>: neither <latpar/...> nor the standard library",
            {"step/policy.hpp": ["mpi.h"]},
        )

    def test_no_header_includes_with_quotes(self):
        self.assert_breach(
            'include/latpar/version.hpp: includes "core/view.hpp": '
            "a public header includes with <> and from <latpar/...> only",
            files={"include/latpar/version.hpp": '#pragma once\n#include "core/view.hpp"\n'},
        )

    def test_a_header_has_a_guard(self):
        self.assert_breach(
            "include/latpar/version.hpp: lacks #pragma once", files={"include/latpar/version.hpp": "// empty\n"}
        )

    def test_a_header_belongs_to_a_layer(self):
        self.assert_breach(
            "include/latpar/other/thing.hpp: belongs to no layer: "
            "add it, or its folder, to LAYERS in scripts/check_layers.py",
            {"other/thing.hpp": []},
        )

    def test_a_missing_header_is_named(self):
        self.assert_breach(
            "include/latpar/step/policy.hpp: includes <latpar/step/none.hpp>: there is no such header",
            {"step/policy.hpp": ["latpar/step/none.hpp"]},
        )

    def test_headers_do_not_include_each_other_in_a_circle(self):
        self.assert_breach(
            "include/latpar/core/view.hpp: includes itself through core/memory.hpp -> core/view.hpp",
            {"core/view.hpp": ["latpar/core/memory.hpp"]},
        )

    def test_the_umbrella_is_complete(self):
        everything = [f"latpar/{name}" for name in GOOD if not name.startswith("mpi/")]
        self.assert_breach(
            "include/latpar/latpar.hpp: lacks <latpar/version.hpp>",
            {"latpar.hpp": [name for name in everything if "version" not in name]},
        )
        self.assert_breach(
            "include/latpar/latpar.hpp: includes <latpar/mpi/communicator.hpp>, which needs mpi.h",
            {"latpar.hpp": everything + ["latpar/mpi/communicator.hpp"]},
        )

    def test_cuda_is_asked_for_in_one_file(self):
        self.assert_breach(
            "src/b.cpp: mentions __CUDACC__, as src/a.cpp does: one file at most may",
            files={"src/a.cpp": "#ifdef __CUDACC__\n", "src/b.cpp": "#ifdef __CUDACC__\n"},
        )
        self.assertEqual(self.check(files={"src/a.cpp": "#ifdef __CUDACC__\n"})[0], 0)


if __name__ == "__main__":
    unittest.main()
