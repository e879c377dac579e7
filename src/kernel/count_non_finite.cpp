// SPDX-License-Identifier: Apache-2.0
// Counting NaNs and infinities, one run of positions after the other.
#include "check.hpp"
#include "run_loop.hpp"

#include <latpar/kernel/count_non_finite.hpp>

#include <cmath>

namespace latpar::inline v0::kernel {
namespace {

template <class T>
std::uint64_t count(const const_latent_view& values) {
    const T* const data = values.as<T>();
    std::uint64_t out = 0;
    detail::run_loop<1> loop(values.extents);
    loop.add(values.strides);
    loop([&](const auto& offsets, index_t length, const auto& steps) {
        const T* at = data + offsets[0];
        for (index_t i = 0; i < length; ++i) out += !std::isfinite(to_float(at[i * steps[0]]));
    });
    return out;
}

}  // namespace

std::uint64_t count_non_finite(const const_latent_view& values) {
    detail::check_count(values, memory_space::host);
    return visit_floating(values.type, [&]<class T>() { return count<T>(values); });
}

}  // namespace latpar::inline v0::kernel
