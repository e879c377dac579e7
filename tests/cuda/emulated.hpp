// SPDX-License-Identifier: Apache-2.0
// The threads of the CUDA kernels one after the other, on the host and its memory.
#pragma once

#include <cuda/detail/combination.hpp>
#include <cuda/detail/copy.hpp>
#include <cuda/detail/merge.hpp>
#include <cuda/detail/stitch.hpp>
#include <kernel/check.hpp>

#include <memory>
#include <vector>

/// A kernel set that plans as `cuda::kernels` does and runs what its threads run.
///
/// Accesses that a device would trap on throw here. `launches` counts, and `limit` is how many
/// positions one launch may have.
struct emulated_kernels {
    latpar::index_t limit = latpar::cuda::detail::max_positions;
    int* launches = nullptr;
    bool owns_targets = true;  ///< as memory of the device is, unlike a peer's

    [[nodiscard]] latpar::memory_space space() const noexcept { return latpar::memory_space::host; }

    void copy(latpar::const_latent_view source, latpar::latent_view target,
              latpar::stream_ref = {}) const {
        latpar::kernel::detail::check_copy(source, target, space());
        if (latpar::kernel::detail::is_same_memory(source, target)) return;
        latpar::cuda::detail::run_copy(
            {source, target}, [&](const std::byte*) { return owns_targets; },
            [&](const auto& batch) { run_batch(batch); }, limit);
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
            moving, [&](const auto& batch) { run_batch(batch); }, limit);
    }

    void round(latpar::latent_view values, latpar::dtype type, latpar::stream_ref = {}) const {
        latpar::kernel::detail::check_round(values, type, space());
        latpar::cuda::detail::run_round(
            values, type,
            [&](const latpar::cuda::detail::copy_task& task) {
                for_each_thread(
                    task.shape.items, latpar::cuda::detail::copy_tile(task),
                    [&](std::uint32_t first) { latpar::cuda::detail::round_share(task, first); });
            },
            limit);
    }

    void stitch(latpar::latent_view output, latpar::axis along,
                std::span<const latpar::kernel::stitch_part> parts, latpar::stream_ref = {}) const {
        latpar::kernel::detail::check_stitch(output, along, parts, space());
        run_stitch({.outputs = {&output, 1}, .cut = 2 + latpar::index_of(along), .parts = parts});
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

    /// With coefficients that the threads fetch.
    void combine_with_fetched(std::span<const latpar::const_latent_view> inputs,
                              std::span<const float> coefficients,
                              std::span<const latpar::latent_view> outputs) const {
        using namespace latpar::cuda::detail;
        latpar::kernel::detail::check_remote_combination(inputs, coefficients.size(), outputs,
                                                         space());
        const auto run = [&](const remote_combination& remote) {
            constexpr float never = 1e30f;
            std::array<float, latpar::kernel::max_operands * latpar::kernel::max_operands> values;
            values.fill(never);
            for (std::uint32_t thread = 0; thread < block_threads; ++thread) {
                fetch_coefficients(remote.task, remote.coefficients, thread, values.data());
            }
            const coefficient_table table = table_of(remote.task, values.data());
            visit_rows(remote.task.rows, [&]<int Rows>() {
                for_each_thread(remote.task.shape.items, combination_items(Rows) * block_threads,
                                [&](std::uint32_t first) {
                                    combination_share<Rows>(remote.task, table, first);
                                });
            });
        };
        run_remote_combination(inputs, coefficients.data(), outputs, run, limit);
    }
    void stitch_combination(const latpar::kernel::stitched_input& stitched,
                            std::span<const latpar::const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latpar::latent_view> outputs,
                            latpar::stream_ref = {}) const {
        latpar::kernel::detail::check_stitch_combination(stitched, inputs, coefficients, outputs,
                                                         space());
        if (!latpar::kernel::detail::is_read(stitched.index, inputs.size(), coefficients)) {
            linear_combination(inputs, coefficients, outputs);
            return;
        }
        run_stitch({outputs, 2 + latpar::index_of(stitched.along), stitched.parts, inputs,
                    coefficients, stitched.index, stitched.type});
    }

    void merge_attention(latpar::latent_view output, latpar::latent_view lse,
                         latpar::const_latent_view part, latpar::const_latent_view part_lse,
                         latpar::stream_ref = {}) const {
        latpar::kernel::detail::check_merge(output, lse, part, part_lse, space());
        latpar::cuda::detail::run_merge(
            output, lse, part, part_lse,
            [&](const latpar::cuda::detail::merge_task& task) {
                count();
                if (task.group == 8) {
                    merge_all<8>(task);
                } else {
                    merge_all<4>(task);
                }
            },
            limit);
    }

private:
    template <int Capacity>
    void run_batch(const latpar::cuda::detail::copy_batch<Capacity>& batch) const {
        count();
        for (std::uint32_t block = 0; block < batch.blocks(); ++block) {
            for (std::uint32_t t = 0; t < latpar::cuda::detail::block_threads; ++t) {
                latpar::cuda::detail::visit_fetching(batch, [&]<bool FetchesParts>() {
                    latpar::cuda::detail::copy_batch_share<FetchesParts>(batch, block, t);
                });
            }
        }
    }

    void run_stitch(const latpar::cuda::detail::stitch_job& job) const {
        latpar::cuda::detail::run_stitch(
            job,
            [&]<class Task>(const Task& task) {
                namespace d = latpar::cuda::detail;
                const std::uint32_t tile = task.turns * d::block_threads;
                d::visit_stitch_rows<Task>(task.combines ? task.rows : 0, [&]<int Rows>() {
                    for_each_thread(task.shape.threads, tile, [&](std::uint32_t first) {
                        const auto share = task.shape.cuts_rows
                                               ? d::stitch_block_share<Rows, true, Task>
                                               : d::stitch_block_share<Rows, false, Task>;
                        share(task, task.weights, first / tile, first % tile);
                    });
                });
            },
            limit);
    }

    template <int Group>
    static void merge_all(const latpar::cuda::detail::merge_task& task) {
        namespace d = latpar::cuda::detail;
        const auto weights = std::make_unique<d::merge_weights>();
        std::vector<d::merge_state> states(d::block_threads);
        for (std::uint32_t block = 0; block * task.heads_per_block < task.heads; ++block) {
            for (std::uint32_t tile = 0; tile < d::merge_block_items(task); tile += d::merge_tile) {
                for (std::uint32_t t = 0; t < d::block_threads; ++t) {
                    d::merge_read<Group>(task, block, tile, t, states[t]);
                }
                // The threads of a block meet before and after the heads are weighed.
                for (std::uint32_t t = d::block_threads; tile == 0 && t-- > 0;) {
                    d::merge_weigh(task, block, t, *weights);
                }
                for (const d::merge_state& state : states) {
                    d::merge_write<Group>(task, *weights, state);
                }
            }
        }
    }

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
