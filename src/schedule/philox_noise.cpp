// SPDX-License-Identifier: Apache-2.0
// Noise that is the same whoever draws it.
#include "philox_noise.hpp"

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

}  // namespace

namespace schedule::detail {

void check_philox_noise(const latent_view& out, const box& where, memory_space space) {
    using latpar::detail::require;
    require(out.space == space, "philox_noise was asked to fill ", name_of(out.space),
            " memory; this one fills ", name_of(space), " memory");
    require(out.type == dtype::f32, "philox_noise was asked to fill a latent of ",
            name_of(out.type), "; it draws f32, convert afterwards");
    require(spatial_extents(out) == where.extent, "philox_noise was asked for the noise of ", where,
            " in a latent of ", box_of(spatial_extents(out)), "; the extents must be the same");
    constexpr index_t most = index_t{1} << 16;
    require(out.extents[0] <= most && out.extents[1] <= most, "philox_noise was asked for ",
            out.extents[0], " samples of ", out.extents[1], " channels; it tells apart ", most,
            " of each");
    constexpr extents3 limits{index_t{1} << 32, index_t{1} << 32, index_t{1} << 34};
    for (const axis a : all_axes) {
        require(where.begin(a) >= 0 && where.end(a) <= limits[index_of(a)],
                "philox_noise was asked for the noise of ", where, "; along ", name_of(a),
                " coordinates go from 0 to ", limits[index_of(a)]);
    }
}

std::array<std::uint32_t, 2> philox_noise_key(std::uint64_t seed, noise_key key) {
    const auto step = static_cast<std::uint64_t>(key.step);
    const auto words = philox4x32({low(key.stream), high(key.stream), low(step), high(step)},
                                  {low(seed), high(seed)});
    return {words[0], words[1]};
}

std::string philox_noise_fingerprint(std::uint64_t seed) {
    return latpar::detail::concat("philox_noise(", seed, ')');
}

}  // namespace schedule::detail

std::string philox_noise::fingerprint() const {
    return schedule::detail::philox_noise_fingerprint(seed_);
}

void philox_noise::fill(latent_view out, const box& where, noise_key key, stream_ref) const {
    schedule::detail::check_philox_noise(out, where, memory_space::host);
    const auto subkey = schedule::detail::philox_noise_key(seed_, key);
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
                                                 subkey),
                            root);
                        for (auto lane = static_cast<std::size_t>(global % 4);
                             lane < 4 && w < width; ++lane, ++w) {
                            row[w * out.strides[4]] = lanes[lane];
                        }
                    }
                }
}

}  // namespace latpar::inline v0
