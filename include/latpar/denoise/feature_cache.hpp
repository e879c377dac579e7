// SPDX-License-Identifier: Apache-2.0
// Keys and values of one window's tokens, lent to the self-attention of the next.
#pragma once

#include <latpar/core/memory.hpp>
#include <latpar/denoise/step_info.hpp>
#include <latpar/kernel/host.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

namespace latpar::inline v0 {

/// Rows of keys, or of values: [rows, width].
using feature_view = basic_view<std::byte, 2>;
using const_feature_view = basic_view<const std::byte, 2>;

/// What a feature cache can hold: keys and values of some tokens, for each layer of a range and
/// each branch of guidance.
struct feature_cache_plan {
    index_t first_layer = 0;  ///< layers [first_layer, last_layer)
    index_t last_layer = 0;
    std::vector<guidance_branch> branches{};
    index_t tokens = 0;  ///< rows of one entry, at most
    index_t width = 0;   ///< elements of a row of keys; a row of values has as many
    dtype type = dtype::f32;

    [[nodiscard]] index_t entries() const noexcept;
    /// What the keys of one entry take, and its values.
    [[nodiscard]] index_t half_entry_bytes() const noexcept;
    /// What a cache takes from its memory source; proportional to the layers.
    [[nodiscard]] index_t bytes() const noexcept;

    /// One line that is equal exactly if the plans are.
    [[nodiscard]] std::string fingerprint() const;
    friend bool operator==(const feature_cache_plan&, const feature_cache_plan&) = default;
};

/// Names an entry of a feature cache.
struct feature_key {
    index_t layer = 0;
    guidance_branch branch = guidance_branch::conditional;
    /// The expert at work, in a model that has several by timestep. Keys of one mean nothing to
    /// another: an entry is empty to all but the expert that began it, and takes no more memory.
    index_t expert = 0;
};

/// The rows of an entry: tokens [first, last) of a grid, which count along W, then H, then T.
struct feature_rows {
    extents3 grid{};  ///< tokens along T, H, W of the latents that are kept; 0 if empty
    index_t first = 0;
    index_t last = 0;
    /// Where the grid's first token stood among those of its window, and how many that had: where
    /// ranks share a window, each knows from it which rows the others have.
    index_t origin = 0;
    index_t window_tokens = 0;

    /// All tokens of a grid.
    [[nodiscard]] static constexpr feature_rows of(const extents3& grid) noexcept {
        return {grid, 0, volume_of(grid), 0, volume_of(grid)};
    }
    [[nodiscard]] constexpr index_t count() const noexcept { return last - first; }
    friend bool operator==(const feature_rows&, const feature_rows&) = default;
};

namespace detail {

/// Errors: usage_error, naming value and remedy, for a cache that cannot be.
void check_feature_cache(const feature_cache_plan& plan, memory_space kernels, memory_space source);
/// The number of an entry. Errors: usage_error if none was planned for the layer or the branch.
[[nodiscard]] index_t feature_entry(const feature_cache_plan& plan, const feature_key& at);
/// Errors: usage_error unless the rows fit a grid and the plan.
void check_feature_rows(const feature_cache_plan& plan, const feature_rows& rows);
/// Errors: usage_error unless keys and values are rows [row, ...) of those of an entry.
void check_features(const feature_cache_plan& plan, const feature_rows& rows, index_t row,
                    const const_feature_view& keys, const const_feature_view& values);

template <class Byte>
[[nodiscard]] basic_view<Byte, 5> as_latent(const basic_view<Byte, 2>& rows) noexcept {
    return {rows.data,
            {1, 1, 1, rows.extents[0], rows.extents[1]},
            {0, 0, 0, rows.strides[0], rows.strides[1]},
            rows.type,
            rows.space};
}

}  // namespace detail

/// What a pipeline over blocks of frames hands from one window to the next.
///
/// In `layers()` a model lends the rows that it finds here to its self-attention, at the frame
/// positions after the window's last, and then puts those of the window's kept latents in their
/// place. What a row of keys is, the model decides; one that stands before its norm and its rotary
/// embedding can be lent to any position. To append and to gather is `copy_all` of the kernels: one
/// launch on a device, and a conversion where the types differ.
/// Threads: `append` and `gather` for different rows may run at once, nothing else.
/// Stream: `append` and `gather` are ordered on theirs.
/// Memory: `plan.bytes()` from `source`, taken by the constructor; nothing after it.
/// Errors: usage_error, naming value and remedy, for what was not planned.
/// Source: DualParal (arXiv 2505.21070).
template <kernel_set Kernels = kernel::host>
class feature_cache {
public:
    explicit feature_cache(feature_cache_plan plan, Kernels kernels = {}, memory_source source = {})
        : plan_(std::move(plan)), kernels_(std::move(kernels)) {
        detail::check_feature_cache(plan_, kernels_.space(), source.space);
        storage_ = buffer(plan_.bytes(), source);
        entries_.resize(static_cast<std::size_t>(plan_.entries()));
    }

    [[nodiscard]] const feature_cache_plan& plan() const noexcept { return plan_; }

    /// Empties all entries.
    void clear() noexcept { std::ranges::fill(entries_, entry{}); }

    /// Of the windows to come, keep `latents` latent frames from `first_latent` on; 0 keeps none.
    void keep(index_t first_latent, index_t latents) {
        detail::require(first_latent >= 0 && latents >= 0, "cannot keep ", latents,
                        " latents from ", first_latent, " on; neither may be negative");
        first_latent_ = first_latent;
        latents_ = latents;
    }
    [[nodiscard]] index_t first_latent() const noexcept { return first_latent_; }
    [[nodiscard]] index_t latents() const noexcept { return latents_; }

    /// The rows that an entry has.
    [[nodiscard]] feature_rows rows(const feature_key& at) const {
        const entry& here = entries_[index_of(at)];
        return here.expert == at.expert ? here.rows : feature_rows{};
    }

    /// Empties an entry and says which rows are to be appended; without any it stays empty.
    void begin(const feature_key& at, const feature_rows& rows) {
        detail::check_feature_rows(plan_, rows);
        entries_[index_of(at)] = {rows, at.expert};
    }

    /// Stores rows [row, row + keys.extents[0]) of the grid.
    void append(const feature_key& at, index_t row, const_feature_view keys,
                const_feature_view values, stream_ref stream = {}) {
        const auto stored = part_of(at, row, keys, values);
        const std::array<kernel::copy_pair, 2> copies{{
            {detail::as_latent(keys), detail::as_latent(stored[0])},
            {detail::as_latent(values), detail::as_latent(stored[1])},
        }};
        kernels_.copy_all(copies, stream);
    }

    /// Copies rows [row, row + keys.extents[0]) of the grid out.
    void gather(const feature_key& at, index_t row, feature_view keys, feature_view values,
                stream_ref stream = {}) const {
        const auto stored = part_of(at, row, keys, values);
        const std::array<kernel::copy_pair, 2> copies{{
            {detail::as_latent(stored[0]), detail::as_latent(keys)},
            {detail::as_latent(stored[1]), detail::as_latent(values)},
        }};
        kernels_.copy_all(copies, stream);
    }

    /// The rows of an entry where they lie, dense; valid until it is begun again.
    [[nodiscard]] const_feature_view keys(const feature_key& at) const { return stored(at)[0]; }
    [[nodiscard]] const_feature_view values(const feature_key& at) const { return stored(at)[1]; }

private:
    struct entry {
        feature_rows rows{};
        index_t expert = 0;
    };

    [[nodiscard]] std::size_t index_of(const feature_key& at) const {
        return static_cast<std::size_t>(detail::feature_entry(plan_, at));
    }

    /// Keys and values of an entry.
    [[nodiscard]] std::array<feature_view, 2> stored(const feature_key& at) const {
        const std::array<index_t, 2> extents{rows(at).count(), plan_.width};
        std::array<feature_view, 2> out{};
        auto next = 2 * static_cast<index_t>(index_of(at));
        for (feature_view& view : out) {
            view = {storage_.data() + next++ * plan_.half_entry_bytes(), extents,
                    dense_strides(extents), plan_.type, storage_.space()};
        }
        return out;
    }

    /// The same from `row` of the grid on, as many rows as keys and values have.
    [[nodiscard]] std::array<feature_view, 2> part_of(const feature_key& at, index_t row,
                                                      const const_feature_view& keys,
                                                      const const_feature_view& values) const {
        const feature_rows here = rows(at);
        detail::check_features(plan_, here, row, keys, values);
        std::array<feature_view, 2> out = stored(at);
        for (feature_view& view : out) {
            view.data += (row - here.first) * plan_.width * size_of(plan_.type);
            view.extents[0] = keys.extents[0];
        }
        return out;
    }

    feature_cache_plan plan_;
    Kernels kernels_;
    buffer storage_;  // by layer, then branch: keys, values
    std::vector<entry> entries_;
    index_t first_latent_ = 0;
    index_t latents_ = 0;
};

}  // namespace latpar::inline v0
