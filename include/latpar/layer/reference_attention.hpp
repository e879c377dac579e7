// SPDX-License-Identifier: Apache-2.0
// Attention as plain loops: the oracle, and a stand-in where speed does not matter.
#pragma once

#include <latpar/layer/attention.hpp>

namespace latpar::inline v0::layer {

/// The softmax of all scores in double precision, head by head and query by query.
///
/// Memory: host; one row of scores. Without any key the output is 0 and the lse minus infinity.
/// Errors: usage_error for shapes that do not fit together.
class reference_attention {
public:
    void operator()(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                    lse_view lse = {}, stream_ref stream = {}) const;
};

static_assert(attention<reference_attention>);

}  // namespace latpar::inline v0::layer
