// SPDX-License-Identifier: Apache-2.0
// Keys and values of one window's latents, lent to the self-attention of the next.
#pragma once

#include <latpar/core/memory.hpp>
#include <latpar/denoise/step_info.hpp>

#include <map>
#include <utility>

namespace wan {

using latpar::index_t;

/// What a pipeline over frame blocks hands from one window to the next.
///
/// `layers()` appends the keys and values that it finds here to those of its window, at the frame
/// positions after the window's last, and then stores the kept latents of this window in their
/// place: keys before their norm and rotation. Entries go by layer and guidance branch.
class feature_cache {
public:
    struct entry {
        latpar::extents3 grid{};  ///< tokens along T, H, W; none if empty
        latpar::buffer keys;      ///< [tokens, width] float32
        latpar::buffer values;
    };

    explicit feature_cache(latpar::memory_source memory = {}) : memory_(memory) {}

    /// Empties it; the memory stays for the entries to come.
    void clear() noexcept {
        for (auto& [key, stored] : entries_) stored.grid = {};
    }

    /// Of the windows to come, store `latents` frames from `first_latent` on; 0 stores none.
    void keep(index_t first_latent, index_t latents) {
        latpar::detail::require(first_latent >= 0 && latents >= 0, "cannot keep ", latents,
                                " latents from ", first_latent, " on");
        first_latent_ = first_latent;
        latents_ = latents;
    }

    [[nodiscard]] index_t first_latent() const noexcept { return first_latent_; }
    [[nodiscard]] index_t latents() const noexcept { return latents_; }

    /// The entry of a layer and branch, made on first use.
    [[nodiscard]] entry& at(index_t layer, latpar::guidance_branch branch) {
        return entries_[{layer, branch}];
    }

    /// Makes room for `bytes` of keys and as many of values.
    void reserve(entry& stored, index_t bytes) const {
        for (latpar::buffer* buffer : {&stored.keys, &stored.values}) {
            if (buffer->bytes() >= bytes) continue;
            *buffer = latpar::buffer();
            *buffer = latpar::buffer(bytes, memory_);
        }
    }

private:
    latpar::memory_source memory_;
    index_t first_latent_ = 0;
    index_t latents_ = 0;
    std::map<std::pair<index_t, latpar::guidance_branch>, entry> entries_;
};

}  // namespace wan
