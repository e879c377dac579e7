#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the packages that building needs and that are missing, on Debian and Ubuntu.
# Says nothing and needs no network if none is. With --ci also what the checks need.
set -euo pipefail

packages=(g++ cmake ninja-build catch2 libeigen3-dev libopenmpi-dev openmpi-bin libcli11-dev
          nlohmann-json3-dev libgif-dev libpng-dev)
if [[ "${1:-}" == --ci ]]; then
    packages+=(ccache clang-14 clang-format-14 doxygen libclang-rt-14-dev python3)
elif [[ $# -gt 0 ]]; then
    echo "usage: scripts/setup.sh [--ci]" >&2
    exit 2
fi

if ! command -v dpkg-query > /dev/null; then
    echo "setup: no dpkg here; provide what these packages hold: ${packages[*]}" >&2
    exit 0
fi
missing=()
for package in "${packages[@]}"; do
    if [[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" != installed ]]; then
        missing+=("$package")
    fi
done
if [[ ${#missing[@]} -eq 0 ]]; then exit 0; fi

as_root=()
if [[ $EUID -ne 0 ]]; then as_root=(sudo); fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "${missing[@]}"
