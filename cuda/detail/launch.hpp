// SPDX-License-Identifier: Apache-2.0
// Launches of kernels whose blocks all have `block_threads` threads.
#pragma once

#include "check.hpp"
#include "portable.hpp"

namespace latpar::inline v0::cuda::detail {

/// Errors: device_error with `what`, if it is refused.
template <class... Arguments>
void launch(void (*kernel)(Arguments...), std::uint32_t blocks, stream_ref stream, const char* what,
            const std::type_identity_t<Arguments>&... arguments) {
    const void* pointers[] = {&arguments...};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(block_threads),
                           const_cast<void**>(pointers), 0, native(stream)),
          "launching ", what);
}

/// The blocks that `items` need, none of them empty.
[[nodiscard]] constexpr std::uint32_t blocks_for(std::uint32_t items, std::uint32_t per_block) {
    return items / per_block + (items % per_block != 0);
}

}  // namespace latpar::inline v0::cuda::detail
