// SPDX-License-Identifier: Apache-2.0
// The CUDA devices of this process, and bytes to and from them.
#pragma once

#include <latpar/core/dtype.hpp>
#include <latpar/core/stream.hpp>

#include <string>

namespace latpar::inline v0::cuda {

/// How many devices there are; 0 where there is no driver either.
[[nodiscard]] int device_count() noexcept;

/// The device that calls of this thread go to. Errors: device_error if there is none.
[[nodiscard]] int current_device();

/// Makes a device current in this thread, by its number on this host from 0: under MPI not the rank
/// in the world. Errors: device_error if there is no such device.
void set_device(int device);

/// The name of a device. Errors: device_error if there is no such device.
[[nodiscard]] std::string device_name(int device);

/// Copies `bytes` from anywhere to anywhere, host or device.
///
/// Stream: ordered on `stream`, which is of the current device; where host memory takes part the
/// host is blocked until the bytes have left or arrived, whatever that memory is. The default stream
/// is not ordered with a cuda::stream.
/// Errors: device_error if the copy fails, or what was queued on `stream` before it did.
void copy_bytes(void* target, const void* source, index_t bytes, stream_ref stream = {});

}  // namespace latpar::inline v0::cuda
