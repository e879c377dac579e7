// SPDX-License-Identifier: Apache-2.0
// The kernels as plain loops: what every other kernel set is compared with.
#pragma once

#include <latpar/kernel/kernel_set.hpp>

namespace latpar::inline v0::kernel {

/// The kernels of `kernel_set` for host memory, one position after the other.
///
/// Slow and easy to check: an oracle for tests. Runs use `kernel::host`, which gives the same bits.
/// Stream: done on return.
class reference {
public:
    [[nodiscard]] memory_space space() const noexcept { return memory_space::host; }

    void copy(const_latent_view source, latent_view target, stream_ref stream = {}) const;

    void copy_all(std::span<const copy_pair> copies, stream_ref stream = {}) const;

    void round(latent_view values, dtype type, stream_ref stream = {}) const;

    void stitch(latent_view output, axis along, std::span<const stitch_part> parts,
                stream_ref stream = {}) const;

    void linear_combination(std::span<const const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latent_view> outputs, stream_ref stream = {}) const;

    void stitch_combination(const stitched_input& stitched,
                            std::span<const const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latent_view> outputs, stream_ref stream = {}) const;

    void merge_attention(latent_view output, latent_view lse, const_latent_view part,
                         const_latent_view part_lse, stream_ref stream = {}) const;
};

static_assert(kernel_set<reference>);

}  // namespace latpar::inline v0::kernel
