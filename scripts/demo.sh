#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the example program and lets four ranks and one make the same video, into out/.
# With arguments it runs latpar-generate with those instead.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/build.sh --target latpar-generate
program=$(pwd)/build/bin/latpar-generate
if [[ $# -gt 0 ]]; then exec "$program" "$@"; fi
mkdir -p out
exec "$program" --prompt "red circle, blue star, night" --mesh latent=4 --overlap 0.5 --compare-serial \
    --output out/video.gif --output out/frames.png --report out/report.json
