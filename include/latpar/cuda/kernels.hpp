// SPDX-License-Identifier: Apache-2.0
// The kernels for CUDA memory.
#pragma once

#include <latpar/kernel/kernel_set.hpp>

namespace latpar::inline v0::cuda {

/// Coefficients that a linear combination reads when it runs, in device memory: [outputs, inputs].
struct device_coefficients {
    const float* values = nullptr;
    std::size_t count = 0;
};

/// The kernels of `kernel_set` for CUDA memory, each one pass over its operands.
///
/// Results have the bits of `kernel::reference`, but for merge_attention, whose exponentials are
/// the device's: within 1e-6 of it. What a NaN carries besides being one may differ.
/// Stream: ordered on the cudaStream_t of `stream`, a null one being the default stream, whose
/// device must be current in the calling thread. The host is never blocked; everything that a call
/// is given, views, weights and coefficients, is taken before it returns, so that calls can be
/// captured in a graph, and its replays read device memory alone.
/// Memory: takes none. A latent of more than 2^30 elements is several launches.
/// Errors: device_error if a launch is refused; usage_error as in `kernel_set`, and for a stitch
/// of more than 128 parts over one position.
class kernels {
public:
    /// Two kernels in one save more than they cost: a launch and a pass over memory.
    static constexpr bool prefers_fewer_passes = true;

    [[nodiscard]] memory_space space() const noexcept { return memory_space::cuda; }

    /// To any memory that the device reaches. What another process shares of a peer is for copy_all:
    /// rows up to 2 KiB that begin or end within 32 bytes would take some 20 ns each here.
    void copy(const_latent_view source, latent_view target, stream_ref stream = {}) const;

    /// One launch for up to 128 copies.
    void copy_all(std::span<const kernel::copy_pair> copies, stream_ref stream = {}) const;

    void round(latent_view values, dtype type, stream_ref stream = {}) const;

    void stitch(latent_view output, axis along, std::span<const kernel::stitch_part> parts,
                stream_ref stream = {}) const;

    void linear_combination(std::span<const const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latent_view> outputs, stream_ref stream = {}) const;

    /// The same with coefficients that are read when the kernel runs, so that a graph can be replayed
    /// for another step. An input without memory counts as nothing, whatever its coefficients.
    /// Errors: usage_error unless there are outputs times inputs coefficients.
    void device_linear_combination(std::span<const const_latent_view> inputs,
                                   const device_coefficients& coefficients,
                                   std::span<const latent_view> outputs,
                                   stream_ref stream = {}) const;

    /// One launch for up to 128 parts with 4864 weights in all; fastest up to 16 parts with 1024
    /// weights, 8 inputs and 4 outputs, which is more than a denoising step has.
    void stitch_combination(const kernel::stitched_input& stitched,
                            std::span<const const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latent_view> outputs, stream_ref stream = {}) const;

    void merge_attention(latent_view output, latent_view lse, const_latent_view part,
                         const_latent_view part_lse, stream_ref stream = {}) const;
};

static_assert(kernel_set<kernels>);

}  // namespace latpar::inline v0::cuda
