// SPDX-License-Identifier: Apache-2.0
// Philox noise and the count of what is no number without a device, on the host.
#include "noise_cases.hpp"

#include <cuda/detail/count.hpp>
#include <cuda/detail/noise.hpp>
#include <kernel/count_cases.hpp>
#include <schedule/philox_noise.hpp>

using namespace latpar;

namespace {

struct host_memory {
    [[nodiscard]] memory_source memory() const { return {}; }
    void upload(std::byte* to, std::span<const std::byte> bytes) const {
        std::copy(bytes.begin(), bytes.end(), to);
    }
    void download(std::span<std::byte> bytes, const std::byte* from) const {
        std::copy_n(from, bytes.size(), bytes.begin());
    }
};

/// Every thread of as many whole blocks as `items` need.
template <class F>
void for_each_thread(std::uint32_t items, std::uint32_t tile, F&& f) {
    for (std::uint32_t begin = 0; begin < items; begin += tile) {
        for (std::uint32_t t = 0; t < cuda::detail::block_threads; ++t) f(begin + t);
    }
}

auto emulated_fill(index_t limit) {
    return [limit](std::uint64_t seed, latent_view out, const box& where, noise_key key) {
        cuda::detail::run_noise(
            out, where, schedule::detail::philox_noise_key(seed, key),
            [](const cuda::detail::noise_task& task) {
                for_each_thread(task.shape.items, cuda::detail::block_threads,
                                [&](std::uint32_t item) { cuda::detail::noise_share(task, item); });
            },
            limit);
    };
}

std::uint64_t emulated_count(const const_latent_view& values, index_t limit) {
    std::uint64_t out = 0;
    cuda::detail::run_count(
        values,
        [&](const cuda::detail::count_task& task) {
            for_each_thread(task.shape.items, cuda::detail::count_tile, [&](std::uint32_t first) {
                out += cuda::detail::count_share(task, first);
            });
        },
        limit);
    return out;
}

}  // namespace

TEST_CASE("emulated noise has the bits of the host") {
    host_memory lab;
    const index_t limit = GENERATE(values<index_t>({cuda::detail::max_positions, 997}));
    noise_cases::check_noise(lab, emulated_fill(limit));
    noise_cases::check_much_noise(lab, emulated_fill(limit));
}

TEST_CASE("an emulated count finds what is no number") {
    host_memory lab;
    const index_t limit = GENERATE(values<index_t>({cuda::detail::max_positions, 997}));
    std::mt19937 generator(32);
    index_t different = 0;
    for (int trial = 0; trial < 600; ++trial) {
        random_latent content(random_extents(generator), random_type(generator), generator);
        count_cases::sprinkle(content, generator);
        const kernel_cases::placed there(lab, content, generator);
        const const_latent_view view = count_cases::varied(there.view(), generator);
        different += emulated_count(view, limit) != count_cases::counted(view);
    }
    CHECK(different == 0);
}
