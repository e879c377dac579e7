// SPDX-License-Identifier: Apache-2.0
// The task of count_non_finite.
#include "detail/count.hpp"

namespace latpar::inline v0::cuda::detail {

count_task plan_count(const const_latent_view& values) {
    count_task out;
    const index_t size = size_of(values.type);
    const int count = static_cast<int>(16 / size);
    std::array<std::array<index_t, 5>, 1> strides{values.strides};
    const joined_axes axes = join_axes(values.extents, strides);
    out.shape = shape_of(axes, count);
    out.values = operand_of(values.data, strides[0], size);
    out.type = values.type;
    out.width = static_cast<std::uint8_t>(access_width(out.values, size, count));
    return out;
}

}  // namespace latpar::inline v0::cuda::detail
