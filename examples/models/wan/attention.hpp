// SPDX-License-Identifier: Apache-2.0
// Attention on one rank, and what the transformer asks of any other.
#pragma once

#include <latpar/layer/attention.hpp>

#include <wan/executor.hpp>

#include <memory>
#include <utility>

namespace wan {

using latpar::layer::const_heads_view;
using latpar::layer::heads_view;
using latpar::layer::lse_view;

/// What the transformer asks of its self-attention: a latpar::layer::attention, which it does not
/// ask for the lse. One over tokens that several ranks share has further members:
/// - `begin(tokens, lent)`: the calls that follow are for windows of so many tokens in all; behind
///   its own rows of k and v each rank passes those that it has of `lent`.
/// - `token_range(tokens) -> pair(begin, end)`: the part of a window's tokens that this rank
///   computes; without it all. The transformer hands over q, k and v of that part.
/// - `gather(rows, stream)`: rows [tokens, columns] float32 of the whole window, of which this rank
///   has filled its range, are completed with those of the others.
/// - `abort(reason)`: ends the waiting of the ranks that share the tokens, for a rank that failed.
template <class A>
concept attention = latpar::layer::attention<A>;

/// Errors: usage_error unless the shapes of a call fit together, and all is memory of `space`: the
/// lse, if it is wanted, and the others of `type`, with a dense head dimension.
void check_attention(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                     lse_view lse, latpar::dtype type, latpar::memory_space space);

/// Attention over the tokens of this rank, parallel over heads and blocks of queries.
///
/// The full score matrix never exists: memory beyond the arguments does not depend on the number of
/// tokens. With fewer heads of keys and values than of queries each serves a group of queries.
class local_attention {
public:
    using executor = wan::executor;

    explicit local_attention(std::shared_ptr<executor> exec) : executor_(std::move(exec)) {}

    /// Without any key the output is 0 and the lse is -infinity.
    ///
    /// Memory: host; any strides, but head_dim is dense. `out` may be q itself.
    /// Errors: usage_error for shapes that do not fit together.
    void operator()(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                    lse_view lse = {}, latpar::stream_ref stream = {});

private:
    std::shared_ptr<executor> executor_;
};

}  // namespace wan
