// SPDX-License-Identifier: Apache-2.0
// Collectives that NCCL has of its own.
#pragma once

#include <latpar/comm/collectives.hpp>
#include <latpar/nccl/communicator.hpp>

namespace latpar::inline v0::nccl {

/// Every rank gets every rank's elements, equally many from each, in rank order: what
/// latpar::all_gather does, by NCCL's own operation, as of the other two.
///
/// Each rank checks its own arguments. Counts that differ between ranks are not found: the device
/// waits until `options::timeout` is over.
/// Ranks: all. Stream: as an exchange that is waited for at once; the first call sets up links of its
/// own, and blocks the host for that. Memory: of any type; in host memory it is latpar::all_gather.
/// Errors: usage_error as that; comm_error and device_error as an exchange.
void all_gather(communicator& comm, const_elements mine, elements all, stream_ref stream = {});

/// Every rank gets the root's elements. Ranks, stream, errors: as all_gather. Memory: of any type; in
/// host memory it is latpar::broadcast.
void broadcast(communicator& comm, elements data, int root, stream_ref stream = {});

/// Replaces every element by the reduction of that element over all ranks, in NCCL's order: the
/// same bits on every rank, but not those of latpar::all_reduce if there are three ranks or more.
///
/// Ranks, stream, errors: as all_gather. Memory: device; f32, f64, bf16, f16, i32, i64 and u8, and
/// usage_error for others.
void all_reduce(communicator& comm, elements values, reduce_op op, stream_ref stream = {});

}  // namespace latpar::inline v0::nccl
