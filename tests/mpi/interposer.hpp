// SPDX-License-Identifier: Apache-2.0
// Counts what this process really hands to MPI, from outside the library.
#pragma once

#include <latpar/comm/ledger.hpp>

/// Payload that went through MPI_Isend and MPI_Irecv since the start of the process.
///
/// Messages with a tag above 99 are control messages of the library and are left out.
[[nodiscard]] latpar::traffic interposed_traffic();

/// Calls of any other function of MPI that moves data: there should be none but those named.
[[nodiscard]] int unexpected_calls();
