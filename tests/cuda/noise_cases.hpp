// SPDX-License-Identifier: Apache-2.0
// What Philox noise in CUDA memory must be, on a device or emulated: the bits of the host's.
#pragma once

#include "kernel_cases.hpp"

#include <latpar/schedule/philox_noise.hpp>

namespace noise_cases {

using latpar::index_t;

/// fill(seed, view, where, key) is what is tested, in the memory of `lab`.
template <class Lab, class Fill>
class noise_check {
public:
    noise_check(Lab& lab, Fill fill) : lab_(&lab), fill_(std::move(fill)) {}

    /// A box of `batch` and `channels` in a tensor of random layout.
    void operator()(std::array<index_t, 2> batch_and_channels, const latpar::box& where) {
        const std::uint64_t seed = generator_() | std::uint64_t{generator_()} << 32;
        const latpar::noise_key key{generator_() % 2 ? generator_() : seed * 3,
                                    static_cast<index_t>(generator_() % 100) - 5};
        random_latent expected({batch_and_channels[0], batch_and_channels[1], where.extent[0],
                                where.extent[1], where.extent[2]},
                               latpar::dtype::f32, generator_);
        const kernel_cases::placed got(*lab_, expected, generator_);
        latpar::philox_noise(seed).fill(expected.view(), where, key);
        fill_(seed, got.view(), where, key);
        different_ += !got.holds(expected);
        ++boxes_;
    }

    std::mt19937& generator() { return generator_; }
    index_t different() const { return different_; }
    index_t boxes() const { return boxes_; }

private:
    Lab* lab_;
    Fill fill_;
    std::mt19937 generator_{41};
    index_t different_ = 0;
    index_t boxes_ = 0;
};

/// Odd boxes anywhere, some of them empty, and at the ends of all coordinates.
template <class Lab, class Fill>
void check_noise(Lab& lab, Fill fill) {
    noise_check check(lab, std::move(fill));
    const auto below = [&](index_t n) {
        return static_cast<index_t>(check.generator()() % static_cast<std::uint64_t>(n));
    };
    const latpar::extents3 ends{index_t{1} << 32, index_t{1} << 32, index_t{1} << 34};
    for (int trial = 0; trial < 300; ++trial) {
        const auto extents = random_extents(check.generator());
        latpar::box where{{}, {extents[2], extents[3], extents[4]}};
        for (std::size_t i = 0; i < 3; ++i) {
            where.origin[i] = trial % 3 == 0 ? ends[i] - where.extent[i] - below(3) * (trial % 2)
                                             : below(trial % 3 == 1 ? 9 : ends[i] - 1000);
        }
        check({extents[0], extents[1]}, where);
    }
    // As many samples, and as many channels, as it tells apart.
    const index_t most = 65536;
    check({most, 1}, {{0, 3, 5}, {1, 1, 3}});
    check({1, most}, {{2, 0, 6}, {1, 1, 3}});
    CHECK(check.boxes() > 300);
    CHECK(check.different() == 0);
}

/// Enough values to meet all that the polynomials do.
template <class Lab, class Fill>
void check_much_noise(Lab& lab, Fill fill) {
    noise_check check(lab, std::move(fill));
    check({1, 16}, {{0, 0, 0}, {21, 60, 104}});
    check({2, 3}, {{5, 7, 3}, {9, 77, 333}});
    CHECK(check.different() == 0);
}

}  // namespace noise_cases
