#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks every C++ file with clang-format 14, the version that .clang-format is written for.
# With --fix the files are rewritten instead.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=(--dry-run -Werror)
if [[ "${1:-}" == --fix ]]; then mode=(-i); fi
format=${CLANG_FORMAT:-clang-format-14}
# Tracked files and new ones alike, but not those that were deleted.
files=()
while IFS= read -r -d '' file; do
    if [[ -f "$file" ]]; then files+=("$file"); fi
done < <(git ls-files -z --cached --others --exclude-standard -- '*.hpp' '*.cpp' '*.cu' '*.cuh')
if [[ ${#files[@]} -eq 0 ]]; then
    echo "format: no C++ file found" >&2
    exit 1
fi
"$format" "${mode[@]}" "${files[@]}"
echo "format: ${#files[@]} files"
