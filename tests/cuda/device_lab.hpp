// SPDX-License-Identifier: Apache-2.0
// A device to run the kernel cases on, if there is one.
#pragma once

#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>

#include <span>

/// Memory of the current device, and kernels on a stream of its own.
class device_lab {
public:
    /// cuda::kernels on one stream, whichever is asked for.
    struct bound_kernels {
        latpar::stream_ref stream;

        void copy(latpar::const_latent_view source, latpar::latent_view target) const {
            latpar::cuda::kernels{}.copy(source, target, stream);
        }
        void copy_all(std::span<const latpar::kernel::copy_pair> copies) const {
            latpar::cuda::kernels{}.copy_all(copies, stream);
        }
        void round(latpar::latent_view values, latpar::dtype type) const {
            latpar::cuda::kernels{}.round(values, type, stream);
        }
        void stitch(latpar::latent_view output, latpar::axis along,
                    std::span<const latpar::kernel::stitch_part> parts) const {
            latpar::cuda::kernels{}.stitch(output, along, parts, stream);
        }
        void linear_combination(std::span<const latpar::const_latent_view> inputs,
                                std::span<const float> coefficients,
                                std::span<const latpar::latent_view> outputs) const {
            latpar::cuda::kernels{}.linear_combination(inputs, coefficients, outputs, stream);
        }
        /// With coefficients in device memory.
        void combine_with_fetched(std::span<const latpar::const_latent_view> inputs,
                                  std::span<const float> coefficients,
                                  std::span<const latpar::latent_view> outputs) const {
            latpar::cuda::device_memory memory;
            const latpar::buffer there(static_cast<latpar::index_t>(coefficients.size_bytes()),
                                       memory.source());
            latpar::cuda::copy_bytes(there.data(), coefficients.data(), there.bytes(), stream);
            latpar::cuda::kernels{}.device_linear_combination(
                inputs,
                latpar::cuda::device_coefficients{reinterpret_cast<const float*>(there.data()),
                                                  coefficients.size()},
                outputs, stream);
            latpar::cuda::synchronize(stream);
        }
        void stitch_combination(const latpar::kernel::stitched_input& stitched,
                                std::span<const latpar::const_latent_view> inputs,
                                std::span<const float> coefficients,
                                std::span<const latpar::latent_view> outputs) const {
            latpar::cuda::kernels{}.stitch_combination(stitched, inputs, coefficients, outputs,
                                                       stream);
        }
        void merge_attention(latpar::latent_view output, latpar::latent_view lse,
                             latpar::const_latent_view part,
                             latpar::const_latent_view part_lse) const {
            latpar::cuda::kernels{}.merge_attention(output, lse, part, part_lse, stream);
        }
    };

    [[nodiscard]] bound_kernels kernels() const { return {stream_}; }
    [[nodiscard]] latpar::stream_ref stream() const { return stream_; }
    [[nodiscard]] latpar::memory_source memory() { return memory_.source(); }
    void upload(std::byte* to, std::span<const std::byte> bytes) const {
        latpar::cuda::copy_bytes(to, bytes.data(), static_cast<latpar::index_t>(bytes.size()),
                                 stream_);
    }
    void download(std::span<std::byte> bytes, const std::byte* from) const {
        latpar::cuda::copy_bytes(bytes.data(), from, static_cast<latpar::index_t>(bytes.size()),
                                 stream_);
    }

private:
    latpar::cuda::stream stream_;
    latpar::cuda::device_memory memory_;
};
