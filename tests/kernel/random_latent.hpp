// SPDX-License-Identifier: Apache-2.0
// Latents for the kernel tests: random values in a random, padded memory layout.
#pragma once

#include <latpar/core/view.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

/// A view into a larger allocation whose axes lie in memory in some order, with gaps around it.
///
/// Copies have the same layout and content, so that two kernels can be run on equal ground and
/// every byte compared, those between and around the positions too.
class random_latent {
public:
    random_latent(const std::array<latpar::index_t, 5>& extents, latpar::dtype type,
                  std::mt19937& generator)
        : view_{nullptr, extents, {}, type, latpar::memory_space::host} {
        const auto draw = [&](int below) {
            return static_cast<latpar::index_t>(generator() % static_cast<unsigned>(below));
        };
        std::array<std::size_t, 5> order{0, 1, 2, 3, 4};
        if (draw(3) == 0) std::shuffle(order.begin(), order.end(), generator);
        const bool padded = draw(3) > 0;
        latpar::index_t next = 1;
        latpar::index_t first = 0;
        for (std::size_t i = 5; i-- > 0;) {
            const std::size_t axis = order[i];
            const latpar::index_t before = padded ? draw(3) : 0;
            const latpar::index_t after = padded ? draw(3) : 0;
            view_.strides[axis] = next;
            first += before * next;
            next *= before + extents[axis] + after;
        }
        first_byte_ = static_cast<std::size_t>(first * latpar::size_of(type));
        // Not empty for empty extents either, so that the view has an address.
        storage_.resize(std::max(static_cast<std::size_t>(next * latpar::size_of(type)),
                                 first_byte_ + sizeof(float)));
        fill(generator);
    }

    [[nodiscard]] latpar::latent_view view() {
        latpar::latent_view out = view_;
        out.data = storage_.data() + first_byte_;
        return out;
    }

    /// All of the allocation, what lies between and around the positions too.
    [[nodiscard]] std::span<std::byte> bytes() { return storage_; }
    [[nodiscard]] std::span<const std::byte> bytes() const { return storage_; }

    friend bool operator==(const random_latent& a, const random_latent& b) {
        return a.storage_ == b.storage_;
    }

private:
    void fill(std::mt19937& generator) {
        latpar::visit_floating(view_.type, [&]<class T>() {
            T* values = reinterpret_cast<T*>(storage_.data());
            for (std::size_t i = 0; i < storage_.size() / sizeof(T); ++i) {
                // Of all magnitudes that the types share, both zeros and subnormals among them.
                const float magnitude = std::ldexp(static_cast<float>(generator() % 4096),
                                                   static_cast<int>(generator() % 40) - 36);
                values[i] = latpar::from_float<T>(generator() % 2 ? magnitude : -magnitude);
            }
        });
    }

    latpar::latent_view view_;
    std::size_t first_byte_ = 0;
    std::vector<std::byte> storage_;
};

inline constexpr std::array computed_types{latpar::dtype::f32, latpar::dtype::bf16,
                                           latpar::dtype::f16};

/// Extents that are odd, long enough for several blocks, or 0.
inline std::array<latpar::index_t, 5> random_extents(std::mt19937& generator) {
    const std::array<unsigned, 5> most{2, 3, 4, 6, generator() % 6 ? 19u : 600u};
    std::array<latpar::index_t, 5> out{};
    for (std::size_t i = 0; i < 5; ++i) out[i] = 1 + generator() % most[i];
    if (generator() % 25 == 0) out[generator() % 5] = 0;
    return out;
}

inline latpar::dtype random_type(std::mt19937& generator) {
    return computed_types[generator() % computed_types.size()];
}
