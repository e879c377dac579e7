// SPDX-License-Identifier: Apache-2.0
// Whether a policy can work in the memory that it is to take.
#pragma once

#include <latpar/core/error.hpp>
#include <latpar/core/memory.hpp>

#include <optional>
#include <string>

namespace latpar::inline v0::detail {

/// Why kernels or communicator do not reach the memory of a source, if so.
template <class Comm, class Kernels>
[[nodiscard]] std::optional<std::string> memory_complaint(const Comm& comm, const Kernels& kernels,
                                                          const memory_source& source) {
    if (source.space != kernels.space()) {
        return concat("the memory source is ", name_of(source.space),
                      " memory, the kernels work on ", name_of(kernels.space()),
                      "; pass a source for theirs");
    }
    if (!comm.reaches(source.space)) {
        return concat("the communicator does not reach ", name_of(source.space),
                      " memory; pass one that does (of CUDA memory cuda::staged and "
                      "nccl::communicator)");
    }
    return std::nullopt;
}

}  // namespace latpar::inline v0::detail
