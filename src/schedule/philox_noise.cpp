// SPDX-License-Identifier: Apache-2.0
// Noise that is the same whoever draws it.
#include "normal.hpp"

#include <latpar/schedule/philox.hpp>
#include <latpar/schedule/philox_noise.hpp>

#include <cmath>

namespace latpar::inline v0 {
namespace {

constexpr std::uint32_t low(std::uint64_t value) {
    return static_cast<std::uint32_t>(value);
}

constexpr std::uint32_t high(std::uint64_t value) {
    return static_cast<std::uint32_t>(value >> 32);
}

void check(const latent_view& out, const box& where) {
    detail::require(out.space == memory_space::host, "philox_noise was asked to fill ",
                    name_of(out.space), " memory; fill host memory and copy it");
    detail::require(out.type == dtype::f32, "philox_noise was asked to fill a latent of ",
                    name_of(out.type), "; it draws f32, convert afterwards");
    detail::require(spatial_extents(out) == where.extent,
                    "philox_noise was asked for the noise of ", where, " in a latent of ",
                    box_of(spatial_extents(out)), "; the extents must be the same");
    constexpr index_t most = index_t{1} << 16;
    detail::require(out.extents[0] <= most && out.extents[1] <= most, "philox_noise was asked for ",
                    out.extents[0], " samples of ", out.extents[1], " channels; it tells apart ",
                    most, " of each");
    constexpr extents3 limits{index_t{1} << 32, index_t{1} << 32, index_t{1} << 34};
    for (const axis a : all_axes) {
        detail::require(where.begin(a) >= 0 && where.end(a) <= limits[index_of(a)],
                        "philox_noise was asked for the noise of ", where, "; along ", name_of(a),
                        " coordinates go from 0 to ", limits[index_of(a)]);
    }
}

}  // namespace

void philox_noise::fill(latent_view out, const box& where, noise_key key, stream_ref) const {
    check(out, where);
    const auto step = static_cast<std::uint64_t>(key.step);
    const auto subkey = schedule::philox4x32(
        {low(key.stream), high(key.stream), low(step), high(step)}, {low(seed_), high(seed_)});
    const auto root = [](float x) { return std::sqrt(x); };
    float* data = out.as<float>();
    const auto [batch, channels, frames, height, width] = out.extents;
    for (index_t b = 0; b < batch; ++b)
        for (index_t c = 0; c < channels; ++c)
            for (index_t t = 0; t < frames; ++t)
                for (index_t h = 0; h < height; ++h) {
                    float* row = data + out.offset({b, c, t, h, 0});
                    const auto at = [](index_t i) { return static_cast<std::uint32_t>(i); };
                    for (index_t w = 0; w < width;) {
                        const index_t global = where.origin[2] + w;
                        const auto lanes = schedule::detail::normal4(
                            schedule::philox4x32({at(global / 4), at(where.origin[1] + h),
                                                  at(where.origin[0] + t), at(c + (b << 16))},
                                                 {subkey[0], subkey[1]}),
                            root);
                        for (auto lane = static_cast<std::size_t>(global % 4);
                             lane < 4 && w < width; ++lane, ++w) {
                            row[w * out.strides[4]] = lanes[lane];
                        }
                    }
                }
}

}  // namespace latpar::inline v0
