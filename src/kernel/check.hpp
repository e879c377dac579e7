// SPDX-License-Identifier: Apache-2.0
// What every kernel set refuses, in the same words.
#pragma once

#include <latpar/kernel/kernel_set.hpp>

namespace latpar::inline v0::kernel::detail {

/// Errors: usage_error if the arguments of `kernel_set::copy` do not fit together.
void check_copy(const const_latent_view& source, const latent_view& target, memory_space space);

/// Errors: usage_error if the arguments of `kernel_set::round` do not fit together.
void check_round(const latent_view& values, dtype type, memory_space space);

/// Errors: usage_error if the arguments of `kernel_set::merge_attention` do not fit together.
void check_merge(const latent_view& output, const latent_view& lse, const const_latent_view& part,
                 const const_latent_view& part_lse, memory_space space);

/// Errors: usage_error if the arguments of `kernel_set::stitch` do not fit together.
void check_stitch(const latent_view& output, axis along, std::span<const stitch_part> parts,
                  memory_space space);

/// Errors: usage_error if the arguments of `kernel_set::linear_combination` do not fit together.
void check_linear_combination(std::span<const const_latent_view> inputs,
                              std::span<const float> coefficients,
                              std::span<const latent_view> outputs, memory_space space);

/// The same with coefficients that are not known yet, so many of them: every input that has memory
/// may be read.
void check_remote_combination(std::span<const const_latent_view> inputs, std::size_t coefficients,
                              std::span<const latent_view> outputs, memory_space space);

/// Errors: usage_error if the values of `count_non_finite` cannot be read.
void check_count(const const_latent_view& values, memory_space space);

/// Errors: usage_error if the arguments of `kernel_set::stitch_combination` do not fit together.
void check_stitch_combination(const stitched_input& stitched,
                              std::span<const const_latent_view> inputs,
                              std::span<const float> coefficients,
                              std::span<const latent_view> outputs, memory_space space);

/// True if some output reads this input; the coefficients are one for each input and output.
[[nodiscard]] bool is_read(std::size_t input, std::size_t inputs,
                           std::span<const float> coefficients) noexcept;

/// True if both name the same elements of the same type.
[[nodiscard]] bool is_same_memory(const const_latent_view& a, const const_latent_view& b) noexcept;

}  // namespace latpar::inline v0::kernel::detail
