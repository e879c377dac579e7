#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks who includes whom: the rules of docs/design.md, "Layers of headers".

Prints one line for each breach, and exits with 1 if there is any.
"""

import argparse
import re
import sys
from pathlib import Path

# The layer of a header: of its own path if that is listed, else of its folder.
LAYERS = {
    "version.hpp": 0,
    "core/": 0,
    "comm/": 1,
    "kernel/kernel_set.hpp": 1,
    "kernel/host.hpp": 1,
    "schedule/": 1,
    "denoise/": 1,
    "io/": 1,
    "comm/mesh.hpp": 2,
    "comm/metered.hpp": 2,
    "comm/self.hpp": 2,
    "comm/thread_team.hpp": 2,
    "kernel/": 2,
    "layer/": 2,
    "step/": 2,
    "loop/": 2,
    "compose/": 3,
    "mpi/": 3,
    "nccl/": 3,
    "cuda/": 3,
    "latpar.hpp": 4,
}
POLICIES = ("layer/", "step/", "loop/", "compose/")
# Each of these can be exchanged for another; so nothing but the user may name one.
BACKENDS = ("comm/self.hpp", "comm/thread_team.hpp", "kernel/reference.hpp", "mpi/", "nccl/", "cuda/")
# What a folder needs; a header of cuda/ includes nothing of CUDA, but is nothing without the library.
FOREIGN = {"mpi/": "mpi.h", "nccl/": "nccl.h", "cuda/": "latpar::cuda"}
STANDARD = set(
    """algorithm any array atomic barrier bit bitset cassert cctype cerrno cfenv cfloat charconv chrono cinttypes
    climits clocale cmath compare complex concepts condition_variable coroutine csetjmp csignal cstdarg cstddef cstdint
    cstdio cstdlib cstring ctime cuchar cwchar cwctype deque exception execution filesystem format forward_list fstream
    functional future initializer_list iomanip ios iosfwd iostream istream iterator latch limits list locale map memory
    memory_resource mutex new numbers numeric optional ostream queue random ranges ratio regex scoped_allocator semaphore
    set shared_mutex source_location span sstream stack stdexcept stop_token streambuf string string_view strstream
    syncstream system_error thread tuple type_traits typeindex typeinfo unordered_map unordered_set utility valarray
    variant vector version""".split()
)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def key_of(header):
    """The entry of LAYERS that holds for a header, or None."""
    if header in LAYERS:
        return header
    folder = header.split("/")[0] + "/"
    return folder if "/" in header and folder in LAYERS else None


def unit_of(header, units):
    """The entry of `units` that a header belongs to, or None."""
    return next((unit for unit in units if header == unit or (unit.endswith("/") and header.startswith(unit))), None)


def breach_of(header, target):
    """Why `header` may not include the latpar header `target`; None if it may."""
    here, there = LAYERS[key_of(header)], LAYERS[key_of(target)]
    backend, other = unit_of(header, BACKENDS), unit_of(target, BACKENDS)
    if header == "latpar.hpp":
        return None
    if unit_of(header, POLICIES) and other:
        return "a policy never includes a backend"
    if backend and other and backend != other:
        return "backends never include each other"
    if there > here:
        return f"layer {here} never includes layer {there}"
    if here == 3 and there == 2 and not header.startswith("compose/"):
        return "layer 3 includes layers 0 and 1 only"
    if there == here > 1 and header.split("/")[0] != target.split("/")[0]:
        return f"layer {here} includes its own layer within one folder only"
    return None


def cycle_in(graph):
    """The headers of one cycle of includes, or an empty list."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node) :] + [node]
        if node in done or node not in graph:
            return []
        path.append(node)
        found = next((cycle for cycle in map(visit, sorted(graph[node])) if cycle), [])
        path.pop()
        done.add(node)
        return found

    return next((cycle for cycle in map(visit, sorted(graph)) if cycle), [])


def breaches(root):
    """Every breach in the project at `root`, as (file, what is wrong)."""
    base = root / "include" / "latpar"
    graph = {}
    for path in sorted(base.rglob("*.hpp")):
        header = path.relative_to(base).as_posix()
        where = f"include/latpar/{header}"
        if key_of(header) is None:
            yield where, "belongs to no layer: add it, or its folder, to LAYERS in scripts/check_layers.py"
            continue
        text = path.read_text()
        if "#pragma once" not in text:
            yield where, "lacks #pragma once"
        graph[header] = set()
        for bracket, name in INCLUDE.findall(text):
            if bracket == '"':
                yield where, f'includes "{name}": a public header includes with <> and from <latpar/...> only'
            elif name.startswith("latpar/"):
                target = name.removeprefix("latpar/")
                graph[header].add(target)
                if not (base / target).is_file():
                    yield where, f"includes <{name}>: there is no such header"
                elif key_of(target) is not None and (why := breach_of(header, target)):
                    yield where, f"includes <{name}>: {why}"
            elif name not in STANDARD:
                if LAYERS[key_of(header)] == 0:
                    yield where, f"includes <{name}>: layer 0 includes the standard library only"
                elif FOREIGN.get(key_of(header)) != name:
                    yield where, f"includes <{name}>: neither <latpar/...> nor the standard library"
    if cycle := cycle_in(graph):
        yield f"include/latpar/{cycle[0]}", "includes itself through " + " -> ".join(cycle[1:])

    optional = tuple(FOREIGN)
    for header in sorted(graph.keys() - graph.get("latpar.hpp", set()) - {"latpar.hpp"}):
        if not header.startswith(optional) and "/detail/" not in header:
            yield "include/latpar/latpar.hpp", f"lacks <latpar/{header}>"
    for header in sorted(graph.get("latpar.hpp", set())):
        if header.startswith(optional):
            yield "include/latpar/latpar.hpp", f"includes <latpar/{header}>, which needs {FOREIGN[key_of(header)]}"

    sources = [p for folder in ("include", "src", "cuda") for p in sorted((root / folder).rglob("*.*")) if p.is_file()]
    guarded = [p.relative_to(root).as_posix() for p in sources if b"__CUDACC__" in p.read_bytes()]
    if len(guarded) > 1:
        yield guarded[1], f"mentions __CUDACC__, as {guarded[0]} does: one file at most may"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    root = parser.parse_args().root
    found = list(breaches(root))
    for where, what in found:
        print(f"{where}: {what}")
    count = len(list((root / "include" / "latpar").rglob("*.hpp")))
    print(f"layers: {count} headers, {len(found)} breaches")
    return 1 if found or not count else 0


if __name__ == "__main__":
    sys.exit(main())
