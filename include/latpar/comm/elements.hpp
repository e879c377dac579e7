// SPDX-License-Identifier: Apache-2.0
// Contiguous elements, as collectives take them.
#pragma once

#include <latpar/core/view.hpp>

#include <ranges>

namespace latpar::inline v0 {

/// Contiguous elements that somebody else owns: bytes and dtype underneath, typed on top.
///
/// Made from any contiguous range of an element type (a span, a vector, an array; host memory) or
/// from a contiguous one-dimensional view (any memory). Errors: usage_error for a view with gaps.
template <class Byte>
struct basic_elements {
    Byte* data = nullptr;
    index_t count = 0;
    dtype type = dtype::u8;
    memory_space space = memory_space::host;

    basic_elements() = default;

    template <class Range>
    requires(std::ranges::contiguous_range<Range>&& std::ranges::sized_range<Range> &&
             (std::is_const_v<Byte> ||
              !std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<Range>>>))
        // NOLINTNEXTLINE(google-explicit-constructor): a range of elements is elements.
        basic_elements(Range&& range)
        : data(reinterpret_cast<Byte*>(std::ranges::data(range))),
          count(static_cast<index_t>(std::ranges::size(range))),
          type(dtype_of<std::ranges::range_value_t<Range>>) {}

    // NOLINTNEXTLINE(google-explicit-constructor): a view of elements is elements.
    basic_elements(const basic_view<Byte, 1>& view)
        : data(view.data), count(view.extents[0]), type(view.type), space(view.space) {
        detail::require(view.is_contiguous(), "a collective was given a view with a stride of ",
                        view.strides[0], " elements; pack it first");
    }

    /// Elements that may be written may be read. (A template, as the operator of basic_view.)
    template <class To>
    requires(!std::is_const_v<Byte> && std::is_same_v<To, basic_elements<const std::byte>>)
    operator To() const noexcept {  // NOLINT(google-explicit-constructor)
        basic_elements<const std::byte> out;
        out.data = data;
        out.count = count;
        out.type = type;
        out.space = space;
        return out;
    }

    /// `length` elements from `offset` on.
    [[nodiscard]] basic_elements part(index_t offset, index_t length) const noexcept {
        basic_elements out = *this;
        out.data += offset * size_of(type);
        out.count = length;
        return out;
    }
};

using elements = basic_elements<std::byte>;
using const_elements = basic_elements<const std::byte>;

}  // namespace latpar::inline v0
