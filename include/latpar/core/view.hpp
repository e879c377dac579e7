// SPDX-License-Identifier: Apache-2.0
// Plain views of strided, typed memory.
#pragma once

#include <latpar/core/box.hpp>
#include <latpar/core/dtype.hpp>
#include <latpar/core/stream.hpp>

#include <array>
#include <cstddef>
#include <span>
#include <type_traits>

namespace latpar::inline v0 {

/// A strided block of memory that somebody else owns.
///
/// Memory: `strides` count elements; any strides are allowed, overlapping ones only for reading.
template <class Byte, std::size_t Rank>
struct basic_view {
    static_assert(std::is_same_v<std::remove_const_t<Byte>, std::byte>);
    static constexpr std::size_t rank = Rank;

    Byte* data = nullptr;
    std::array<index_t, Rank> extents{};
    std::array<index_t, Rank> strides{};
    dtype type = dtype::f32;
    memory_space space = memory_space::host;

    [[nodiscard]] constexpr index_t elements() const noexcept {
        index_t count = 1;
        for (const index_t extent : extents) count *= extent;
        return count;
    }
    [[nodiscard]] constexpr index_t bytes() const noexcept { return elements() * size_of(type); }

    /// True if the elements lie without gaps in row-major order.
    [[nodiscard]] constexpr bool is_contiguous() const noexcept {
        if (elements() == 0) return true;
        index_t expected = 1;
        for (std::size_t i = Rank; i-- > 0;) {
            if (extents[i] != 1 && strides[i] != expected) return false;
            expected *= extents[i];
        }
        return true;
    }

    /// Element offset of a position.
    [[nodiscard]] constexpr index_t offset(const std::array<index_t, Rank>& at) const noexcept {
        index_t out = 0;
        for (std::size_t i = 0; i < Rank; ++i) out += at[i] * strides[i];
        return out;
    }

    /// The first element as T.
    ///
    /// Errors: usage_error if T is not the element type.
    template <class T>
    [[nodiscard]] auto as() const {
        using element = std::conditional_t<std::is_const_v<Byte>, const T, T>;
        detail::require(type == dtype_of<T>, "a view of ", name_of(type), " was read as ",
                        name_of(dtype_of<T>));
        return reinterpret_cast<element*>(data);
    }

    /// A view to mutable memory is a view to const. (A template, since nvcc warns of a plain operator
    /// where its constraint excludes it.)
    template <class To>
    requires(!std::is_const_v<Byte> && std::is_same_v<To, basic_view<const std::byte, Rank>>)
    operator To() const noexcept {  // NOLINT(google-explicit-constructor)
        return {data, extents, strides, type, space};
    }
};

/// Row-major strides of dense extents.
template <std::size_t Rank>
[[nodiscard]] constexpr std::array<index_t, Rank> dense_strides(
    const std::array<index_t, Rank>& extents) noexcept {
    std::array<index_t, Rank> strides{};
    index_t next = 1;
    for (std::size_t i = Rank; i-- > 0;) {
        strides[i] = next;
        next *= extents[i];
    }
    return strides;
}

/// A dense view of a user's array of T; of CUDA memory if `space` says so. CUDA's own types of half
/// precision have the bits of latpar's: cast `__nv_bfloat16*` to `latpar::bfloat16*`.
template <class T, std::size_t Rank>
[[nodiscard]] auto make_view(T* data, const std::array<index_t, Rank>& extents,
                             memory_space space = memory_space::host) noexcept {
    using byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
    return basic_view<byte, Rank>{reinterpret_cast<byte*>(data), extents, dense_strides(extents),
                                  dtype_of<T>, space};
}

/// A latent or a prediction: [B, C, T, H, W].
using latent_view = basic_view<std::byte, 5>;
using const_latent_view = basic_view<const std::byte, 5>;

/// The (T, H, W) extents of a latent.
template <class Byte>
[[nodiscard]] constexpr extents3 spatial_extents(const basic_view<Byte, 5>& view) noexcept {
    return {view.extents[2], view.extents[3], view.extents[4]};
}

/// The part of `view` inside `region`, which counts from the view's first position.
///
/// Errors: usage_error if the region does not lie within the view.
template <class Byte>
[[nodiscard]] basic_view<Byte, 5> subview(basic_view<Byte, 5> view, const box& region) {
    detail::require(contains(box_of(spatial_extents(view)), region), "region ", region,
                    " does not lie within a latent of ", box_of(spatial_extents(view)));
    if (region.empty()) {
        for (std::size_t i = 0; i < 3; ++i) view.extents[i + 2] = region.extent[i];
        return view;
    }
    index_t skip = 0;
    for (std::size_t i = 0; i < 3; ++i) {
        skip += region.origin[i] * view.strides[i + 2];
        view.extents[i + 2] = region.extent[i];
    }
    view.data += skip * size_of(view.type);
    return view;
}

}  // namespace latpar::inline v0
