// SPDX-License-Identifier: Apache-2.0
// MPI's error codes as exceptions.
#pragma once

#include <latpar/core/error.hpp>

#include <mpi.h>

namespace latpar::inline v0::mpi::detail {

[[nodiscard]] inline std::string error_text(int code) {
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) {
        return latpar::detail::concat("MPI error ", code);
    }
    return {text, static_cast<std::size_t>(length)};
}

/// Errors: comm_error unless `code` is MPI_SUCCESS.
inline void check(int code, const char* call) {
    latpar::detail::require<comm_error>(code == MPI_SUCCESS, call, " failed: ",
                                        code == MPI_SUCCESS ? std::string() : error_text(code));
}

[[nodiscard]] inline bool is_initialized() noexcept {
    int flag = 0;
    MPI_Initialized(&flag);
    return flag != 0;
}

[[nodiscard]] inline bool is_finalized() noexcept {
    int flag = 0;
    MPI_Finalized(&flag);
    return flag != 0;
}

}  // namespace latpar::inline v0::mpi::detail
