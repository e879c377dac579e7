// SPDX-License-Identifier: Apache-2.0
// The threads of the CUDA kernels one after the other, on the host and its memory.
#pragma once

#include <cuda/detail/combination.hpp>
#include <cuda/detail/copy.hpp>
#include <cuda/detail/merge.hpp>
#include <cuda/detail/stitch.hpp>
#include <kernel/check.hpp>

#include <vector>

/// A kernel set that plans as `cuda::kernels` does and runs what its threads run.
///
/// Accesses that a device would trap on throw here. `launches` counts, and `limit` is how many
/// positions one launch may have.
struct emulated_kernels {
    latpar::index_t limit = latpar::cuda::detail::max_positions;
    int* launches = nullptr;

    [[nodiscard]] latpar::memory_space space() const noexcept { return latpar::memory_space::host; }

    void copy(latpar::const_latent_view source, latpar::latent_view target,
              latpar::stream_ref stream = {}) const {
        const latpar::kernel::copy_pair pair{source, target};
        copy_all({&pair, 1}, stream);
    }

    void copy_all(std::span<const latpar::kernel::copy_pair> copies,
                  latpar::stream_ref = {}) const {
        namespace k = latpar::kernel::detail;
        std::vector<latpar::kernel::copy_pair> moving;
        for (const latpar::kernel::copy_pair& c : copies) {
            k::check_copy(c.source, c.target, space());
            if (!k::is_same_memory(c.source, c.target)) moving.push_back(c);
        }
        latpar::cuda::detail::run_copies(
            moving,
            [&](const auto& batch) {
                count();
                for (std::uint32_t tile = 0; tile < batch.tiles; ++tile) {
                    for (std::uint32_t t = 0; t < latpar::cuda::detail::block_threads; ++t) {
                        latpar::cuda::detail::copy_batch_share(batch, tile, t);
                    }
                }
            },
            limit);
    }

    void round(latpar::latent_view values, latpar::dtype type, latpar::stream_ref = {}) const {
        latpar::kernel::detail::check_round(values, type, space());
        latpar::cuda::detail::run_round(
            values, type,
            [&](const latpar::cuda::detail::copy_task& task) {
                for_each_thread(
                    task.shape.items, latpar::cuda::detail::copy_tile,
                    [&](std::uint32_t first) { latpar::cuda::detail::round_share(task, first); });
            },
            limit);
    }

    void stitch(latpar::latent_view output, latpar::axis along,
                std::span<const latpar::kernel::stitch_part> parts, latpar::stream_ref = {}) const {
        latpar::kernel::detail::check_stitch(output, along, parts, space());
        latpar::cuda::detail::run_stitch(
            output, 2 + latpar::index_of(along), parts,
            [&](const auto& task) {
                for_each_thread(
                    task.shape.items, latpar::cuda::detail::stitch_tile, [&](std::uint32_t first) {
                        if (task.cut == 0) {
                            latpar::cuda::detail::stitch_share<true>(task, task.weights, first);
                        } else {
                            latpar::cuda::detail::stitch_share<false>(task, task.weights, first);
                        }
                    });
            },
            limit);
    }

    void linear_combination(std::span<const latpar::const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latpar::latent_view> outputs,
                            latpar::stream_ref = {}) const {
        latpar::kernel::detail::check_linear_combination(inputs, coefficients, outputs, space());
        latpar::cuda::detail::run_combination(
            inputs, coefficients, outputs,
            [&](const latpar::cuda::detail::combination_task& task) {
                latpar::cuda::detail::visit_rows(task.rows, [&]<int Rows>() {
                    for_each_thread(task.shape.items,
                                    latpar::cuda::detail::combination_items(Rows) *
                                        latpar::cuda::detail::block_threads,
                                    [&](std::uint32_t first) {
                                        latpar::cuda::detail::combination_share<Rows>(task, first);
                                    });
                });
            },
            limit);
    }

    void merge_attention(latpar::latent_view output, latpar::latent_view lse,
                         latpar::const_latent_view part, latpar::const_latent_view part_lse,
                         latpar::stream_ref = {}) const {
        latpar::kernel::detail::check_merge(output, lse, part, part_lse, space());
        latpar::cuda::detail::run_merge(
            output, lse, part, part_lse,
            [&](const latpar::cuda::detail::merge_task& task) {
                count();
                namespace d = latpar::cuda::detail;
                std::vector<d::merge_state> warp(32);
                for (std::uint32_t begin = 0; begin < task.shape.items; begin += d::merge_tile) {
                    for (std::uint32_t t = 0; t < d::block_threads; t += 32) {
                        // A warp's lanes meet between the two halves.
                        for (std::uint32_t lane = 0; lane < 32; ++lane) {
                            d::merge_read(task, begin + t + lane, warp[lane]);
                        }
                        for (std::uint32_t lane = 32; lane-- > 0;) {
                            d::merge_write(task, begin + t + lane, warp[lane]);
                        }
                    }
                }
            },
            limit);
    }

private:
    void count() const {
        if (launches) ++*launches;
    }

    template <class F>
    void for_each_thread(std::uint32_t items, std::uint32_t tile, F&& f) const {
        count();
        for (std::uint32_t begin = 0; begin < items; begin += tile) {
            for (std::uint32_t t = 0; t < latpar::cuda::detail::block_threads; ++t) f(begin + t);
        }
    }
};

static_assert(latpar::kernel_set<emulated_kernels>);
