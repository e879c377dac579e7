// SPDX-License-Identifier: Apache-2.0
// Where the recorded outputs lie that the tests compare with.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

/// A recorded file: in $LATPAR_REFERENCE_DIR if set, else in the source tree.
inline std::filesystem::path reference_file(const std::string& name) {
    const char* directory = std::getenv("LATPAR_REFERENCE_DIR");
    return std::filesystem::path(directory ? directory : LATPAR_DEFAULT_REFERENCE_DIR) / name;
}
