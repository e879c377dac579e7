// SPDX-License-Identifier: Apache-2.0
// Collectives that NCCL has of its own.
#pragma once

#include <latpar/comm/collectives.hpp>
#include <latpar/nccl/communicator.hpp>

namespace latpar::inline v0::nccl {

// They take the place of latpar's own where the communicator is NCCL's. NCCL sets up links of their
// own for them at the first call, which blocks the host. Counts are compared with what they say on
// each rank, not among ranks.
// Stream: as an exchange that is waited for at once. Ranks: all. Errors: comm_error and
// device_error, as an exchange.

/// Every rank gets every rank's elements, equally many from each, in rank order.
///
/// Memory: of any type; in host memory it is latpar::all_gather. Errors: usage_error as that.
void all_gather(communicator& comm, const_elements mine, elements all, stream_ref stream = {});

/// Every rank gets the root's elements. Memory: of any type; in host memory it is
/// latpar::broadcast. Errors: usage_error as that.
void broadcast(communicator& comm, elements data, int root, stream_ref stream = {});

/// Replaces every element by the reduction of that element over all ranks, in NCCL's order: the
/// same bits on every rank, but not those of latpar::all_reduce if there are three ranks or more.
///
/// Memory: device; f32, f64, bf16, f16, i32, i64 and u8. Errors: usage_error for others.
void all_reduce(communicator& comm, elements values, reduce_op op, stream_ref stream = {});

}  // namespace latpar::inline v0::nccl
