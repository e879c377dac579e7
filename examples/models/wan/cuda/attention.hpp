// SPDX-License-Identifier: Apache-2.0
// Attention on one GPU.
#pragma once

#include <wan/attention.hpp>
#include <wan/cuda/executor.hpp>

#include <cstdint>
#include <memory>

namespace wan::cuda {

/// The largest head that attention is computed for.
inline constexpr index_t largest_head = 128;

/// Attention over the tokens of this rank in device memory, of f32 or bf16; the lse is f32.
///
/// The full score matrix never exists, and no memory is taken: blocks of queries go over the keys
/// from the first to the last. In bf16 scores and sums are float32, by tensor cores; on Hopper, if
/// memory and strides are of whole 16 bytes, by kernels of its own. A query's result for a head
/// does not depend on the other queries and heads of the call, bit for bit: spread over ranks by
/// heads it is what one rank has. With fewer heads of keys and values than of queries each serves a
/// group of queries. Without any key the output is 0 and the lse is -infinity.
/// Stream: ordered on it. Memory: any strides, but head_dim is dense. `out` may be q itself.
/// Errors: usage_error for shapes that do not fit together and for head_dim above `largest_head`.
class attention {
public:
    using executor = wan::cuda::executor;

    /// Kernels: the best that the device has, or, to compare, those that all devices have.
    enum class kernels : std::uint8_t { best, common };

    attention() = default;
    explicit attention(kernels which) : which_(which) {}
    /// As local_attention is made, which needs its executor.
    explicit attention(const std::shared_ptr<executor>&) {}

    void operator()(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                    lse_view lse = {}, latpar::stream_ref stream = {}) const;

private:
    kernels which_ = kernels::best;
};

static_assert(wan::attention<attention>);

}  // namespace wan::cuda
