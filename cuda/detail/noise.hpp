// SPDX-License-Identifier: Apache-2.0
// philox_noise: what a thread does, and the task that it is given.
#pragma once

#include "loop_shape.hpp"

#include <latpar/schedule/philox.hpp>

#include <schedule/normal.hpp>

#include <cmath>

namespace latpar::inline v0::cuda::detail {

/// Noise for one box; an item is the four values of one counter, or what the box has of them.
struct noise_task {
    loop_shape shape;  ///< the axes above a row are H, T, C and B
    operand out;
    std::uint32_t key[2] = {};
    std::uint32_t first[4] = {};  ///< the counter of the first item
    std::int32_t before = 0;      ///< values of a row's first item that lie before the row
};

/// The task for a view that is checked and no larger than `max_positions`; `origin` is that of
/// [B, C, T, H, W], and `key` that of the counters.
[[nodiscard]] noise_task plan_noise(const latent_view& out, const std::array<index_t, 5>& origin,
                                    const std::array<std::uint32_t, 2>& key);

/// Calls launch(task) for each block of the box.
template <class Launch>
void run_noise(const latent_view& out, const box& where, const std::array<std::uint32_t, 2>& key,
               Launch&& launch, index_t limit = max_positions) {
    for_each_block(out.extents, limit, [&](std::array<index_t, 5> origin, const auto& extents) {
        const latent_view block = block_of(out, origin, extents);
        for (std::size_t i = 0; i < 3; ++i) origin[i + 2] += where.origin[i];
        launch(plan_noise(block, origin, key));
    });
}

/// The correctly rounded square root.
struct rounded_root {
    LATPAR_DEVICE float operator()(float x) const {
#ifdef __CUDA_ARCH__
        return __fsqrt_rn(x);
#else
        return std::sqrt(x);
#endif
    }
};

LATPAR_DEVICE void noise_share(const noise_task& task, std::uint32_t item) {
    if (item >= task.shape.items) return;
    const item_place at = locate(task.shape, item);
    const std::array<float, 4> values = schedule::detail::normal4(
        schedule::philox4x32(
            {task.first[0] + at.in_row, task.first[1] + at.outer[0], task.first[2] + at.outer[1],
             task.first[3] + at.outer[2] + (at.outer[3] << 16)},
            {task.key[0], task.key[1]}),
        rounded_root{});
    std::uint32_t bits[4];
    LATPAR_UNROLL
    for (int e = 0; e < 4; ++e) {
        bits[e] = std::bit_cast<std::uint32_t>(values[static_cast<std::size_t>(e)]);
    }

    const std::int64_t begin = static_cast<std::int64_t>(at.in_row) * 4 - task.before;
    const std::int64_t left = static_cast<std::int64_t>(task.shape.row_elements) - begin;
    std::byte* const to = task.out.row(at, 4) + begin * task.out.step;
    if (begin >= 0 && left >= 4 && task.out.step == 4 &&
        reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
        store<16>(to, bits);
        return;
    }
    LATPAR_UNROLL
    for (int e = 0; e < 4; ++e) {
        if (begin + e >= 0 && e < left) store<4>(to + e * task.out.step, bits + e);
    }
}

}  // namespace latpar::inline v0::cuda::detail
