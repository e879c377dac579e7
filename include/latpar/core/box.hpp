// SPDX-License-Identifier: Apache-2.0
// Boxes of latent positions in (T, H, W).
#pragma once

#include <latpar/core/dtype.hpp>

#include <algorithm>
#include <array>
#include <ostream>
#include <string_view>

namespace latpar::inline v0 {

/// The axes of a latent that can be cut.
enum class axis : std::uint8_t { t, h, w };

inline constexpr std::array all_axes{axis::t, axis::h, axis::w};

[[nodiscard]] constexpr std::size_t index_of(axis a) noexcept {
    return static_cast<std::size_t>(a);
}

[[nodiscard]] constexpr std::string_view name_of(axis a) noexcept {
    constexpr std::array<std::string_view, 3> names{"T", "H", "W"};
    return names[index_of(a)];
}

/// One number for each of T, H, W.
using extents3 = std::array<index_t, 3>;

[[nodiscard]] constexpr index_t volume_of(const extents3& extent) noexcept {
    return extent[0] * extent[1] * extent[2];
}

/// An axis-aligned block of latent positions: an origin and an extent in (T, H, W).
struct box {
    extents3 origin{};
    extents3 extent{};

    [[nodiscard]] constexpr index_t volume() const noexcept { return volume_of(extent); }
    [[nodiscard]] constexpr bool empty() const noexcept { return volume() == 0; }
    [[nodiscard]] constexpr index_t begin(axis a) const noexcept { return origin[index_of(a)]; }
    [[nodiscard]] constexpr index_t end(axis a) const noexcept {
        return origin[index_of(a)] + extent[index_of(a)];
    }
    friend constexpr bool operator==(const box&, const box&) = default;
};

/// The box that starts at zero.
[[nodiscard]] constexpr box box_of(const extents3& extent) noexcept {
    return {{}, extent};
}

/// `whole` with [begin, end) along `a` in place of its own range.
[[nodiscard]] constexpr box slab(box whole, axis a, index_t begin, index_t end) noexcept {
    whole.origin[index_of(a)] = begin;
    whole.extent[index_of(a)] = end - begin;
    return whole;
}

/// The positions in both; an empty intersection is box{}.
[[nodiscard]] constexpr box intersect(const box& a, const box& b) noexcept {
    box out;
    for (std::size_t i = 0; i < 3; ++i) {
        const index_t begin = std::max(a.origin[i], b.origin[i]);
        const index_t end = std::min(a.origin[i] + a.extent[i], b.origin[i] + b.extent[i]);
        if (end <= begin) return {};
        out.origin[i] = begin;
        out.extent[i] = end - begin;
    }
    return out;
}

/// True if every position of `inner` lies in `outer`; an empty box lies in any.
[[nodiscard]] constexpr bool contains(const box& outer, const box& inner) noexcept {
    return inner.empty() || intersect(outer, inner) == inner;
}

/// `b` with coordinates counted from `origin` instead of zero.
[[nodiscard]] constexpr box relative_to(box b, const extents3& origin) noexcept {
    for (std::size_t i = 0; i < 3; ++i) b.origin[i] -= origin[i];
    return b;
}

inline std::ostream& operator<<(std::ostream& out, const box& b) {
    for (std::size_t i = 0; i < 3; ++i) {
        out << (i ? "x" : "") << '[' << b.origin[i] << ',' << b.origin[i] + b.extent[i] << ')';
    }
    return out;
}

}  // namespace latpar::inline v0
