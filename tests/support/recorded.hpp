// SPDX-License-Identifier: Apache-2.0
// Recorded tensors as the tests want them, and the distance between two results.
#pragma once

#include <latpar/core/memory.hpp>
#include <latpar/io/safetensors.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>

/// A recorded latent in float32: [B, C, T, H, W], or [C, T, H, W] with a batch of 1.
inline latpar::latent recorded_latent(const latpar::safetensors_file& file, std::string_view name) {
    const latpar::safetensors_entry& entry = file.at(name);
    const std::size_t rank = entry.shape.size();
    latpar::detail::require<latpar::io_error>(rank == 4 || rank == 5, "tensor '", name,
                                              "' has rank ", rank, ", no latent");
    std::array<latpar::index_t, 5> extents{1};
    std::ranges::copy(entry.shape, extents.end() - static_cast<std::ptrdiff_t>(rank));
    latpar::latent out(extents);
    latpar::to_float32(entry, out.elements<float>());
    return out;
}

/// |a - b| / |b| in double precision; infinite or NaN where it ought to be.
inline double relative_l2(std::span<const float> a, std::span<const float> b) {
    latpar::detail::require(a.size() == b.size(), "relative_l2 of ", a.size(), " and ", b.size(),
                            " elements");
    double distance = 0;
    double norm = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double difference = double{a[i]} - double{b[i]};
        distance += difference * difference;
        norm += double{b[i]} * double{b[i]};
    }
    if (distance == 0) return 0;
    return norm == 0 ? std::numeric_limits<double>::infinity() : std::sqrt(distance / norm);
}

inline double relative_l2(const latpar::latent& a, const latpar::latent& b) {
    return relative_l2(a.elements<float>(), b.elements<float>());
}
