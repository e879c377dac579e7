// SPDX-License-Identifier: Apache-2.0
// Noise that the user brings.
#include <latpar/kernel/host.hpp>
#include <latpar/schedule/recorded_noise.hpp>

#include <algorithm>
#include <utility>

namespace latpar::inline v0 {

recorded_noise::recorded_noise(std::vector<entry> entries) : entries_(std::move(entries)) {
    for (auto i = entries_.begin(); i != entries_.end(); ++i) {
        const auto same = [&](const entry& other) { return other.key == i->key; };
        detail::require(std::none_of(entries_.begin(), i, same), "the noise of stream ",
                        i->key.stream, ", step ", i->key.step,
                        " was recorded twice; give each key once");
    }
}

void recorded_noise::fill(latent_view out, const box& where, noise_key key, stream_ref) const {
    const auto found = std::ranges::find_if(
        entries_, [&](const entry& each) { return any_key_ || each.key == key; });
    detail::require(found != entries_.end(), "no noise was recorded for stream ", key.stream,
                    ", step ", key.step, "; record it or draw it with philox_noise");
    kernel::host{}.copy(subview(found->noise, where), out);
}

}  // namespace latpar::inline v0
