// SPDX-License-Identifier: Apache-2.0
// The task of philox_noise.
#include "detail/noise.hpp"

namespace latpar::inline v0::cuda::detail {

noise_task plan_noise(const latent_view& out, const std::array<index_t, 5>& origin,
                      const std::array<std::uint32_t, 2>& key) {
    noise_task task;
    const auto reversed = [](const std::array<index_t, 5>& numbers) {
        std::array<index_t, 5> order = numbers;
        std::reverse(order.begin(), order.end());
        return order;
    };
    task.before = static_cast<std::int32_t>(origin[4] % 4);
    joined_axes axes;
    axes.depth = 5;
    axes.extents = reversed(out.extents);
    task.shape = shape_of(axes, 4, task.before);
    task.out = operand_of(out.data, reversed(out.strides), size_of(out.type));
    task.key[0] = key[0];
    task.key[1] = key[1];
    const auto word = [](index_t i) { return static_cast<std::uint32_t>(i); };
    task.first[0] = word(origin[4] / 4);
    task.first[1] = word(origin[3]);
    task.first[2] = word(origin[2]);
    task.first[3] = word(origin[1] + (origin[0] << 16));
    return task;
}

}  // namespace latpar::inline v0::cuda::detail
