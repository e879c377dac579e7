// SPDX-License-Identifier: Apache-2.0
// The part of a latent that a rank holds, in memory that is taken once.
#pragma once

#include <latpar/core/memory.hpp>

namespace latpar::inline v0 {

/// A dense [B, C, box] tensor whose box may change within the memory that it was made with. One that
/// was moved from is empty.
class latent_block {
public:
    latent_block() = default;
    explicit latent_block(index_t capacity_bytes, dtype type = dtype::f32,
                          memory_source source = {})
        : storage_(capacity_bytes, source) {
        view_.type = type;
        view_.space = source.space;
        view_.data = storage_.data();
    }
    latent_block(latent_block&& other) noexcept
        : storage_(std::move(other.storage_)),
          view_(std::exchange(other.view_, {})),
          where_(std::exchange(other.where_, {})) {}
    latent_block& operator=(latent_block&& other) noexcept {
        storage_ = std::move(other.storage_);
        view_ = std::exchange(other.view_, {});
        where_ = std::exchange(other.where_, {});
        return *this;
    }

    /// Makes this a block of `where`; the elements are then undefined.
    ///
    /// Errors: usage_error if the memory does not suffice.
    void place(index_t batch, index_t channels, const box& where) {
        view_.extents = {batch, channels, where.extent[0], where.extent[1], where.extent[2]};
        view_.strides = dense_strides(view_.extents);
        detail::require(view_.bytes() <= storage_.bytes(), "a block of ", view_.bytes(),
                        " bytes does not fit the ", storage_.bytes(), " that were taken for it");
        where_ = where;
    }

    /// The positions of the global latent that it holds.
    [[nodiscard]] const box& where() const noexcept { return where_; }
    [[nodiscard]] latent_view view() noexcept { return view_; }
    [[nodiscard]] const_latent_view view() const noexcept { return view_; }
    /// Where its memory comes from.
    [[nodiscard]] const memory_source& source() const noexcept { return storage_.source(); }
    /// All of the memory, as a view without extents.
    [[nodiscard]] latent_view memory() const noexcept {
        return {storage_.data(), {}, {}, view_.type, view_.space};
    }
    /// The view of a region of the global latent.
    [[nodiscard]] latent_view view(const box& region) {
        return subview(latent_view(view_), relative_to(region, where_.origin));
    }
    [[nodiscard]] const_latent_view view(const box& region) const {
        return subview(const_latent_view(view_), relative_to(region, where_.origin));
    }

private:
    buffer storage_;
    latent_view view_{};
    box where_{};
};

}  // namespace latpar::inline v0
