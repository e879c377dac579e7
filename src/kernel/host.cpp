// SPDX-License-Identifier: Apache-2.0
// The kernels for host memory.
#include "check.hpp"
#include "merge_weights.hpp"
#include "run_loop.hpp"

#include <latpar/kernel/host.hpp>

#include <cstring>

namespace latpar::inline v0::kernel {
namespace {

/// Positions that are worked on at a time: all operands of a block stay in the first-level cache.
constexpr index_t block = 256;

template <class Source, class Target>
void convert(const Source* source, index_t source_step, Target* target, index_t target_step,
             index_t count) {
    if (source_step == 1 && target_step == 1) {
        if constexpr (std::is_same_v<Source, Target>) {
            std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(Target));
        } else {
            for (index_t i = 0; i < count; ++i) target[i] = from_float<Target>(to_float(source[i]));
        }
        return;
    }
    for (index_t i = 0; i < count; ++i) {
        if constexpr (std::is_same_v<Source, Target>) {
            target[i * target_step] = source[i * source_step];
        } else {
            target[i * target_step] = from_float<Target>(to_float(source[i * source_step]));
        }
    }
}

/// A run of float32: in place where it lies if it can be, else in `room`.
const float* load(const const_latent_view& view, index_t offset, index_t step, index_t count,
                  float* room) {
    if (view.type == dtype::f32 && step == 1) return view.as<float>() + offset;
    visit_floating(view.type, [&]<class T>() {
        convert(view.as<T>() + offset, step, room, index_t{1}, count);
    });
    return room;
}

void store(const float* values, const latent_view& view, index_t offset, index_t step,
           index_t count) {
    visit_floating(view.type, [&]<class T>() {
        convert(values, index_t{1}, view.as<T>() + offset, step, count);
    });
}

/// sum = term, or sum + term: the first term is taken as it is.
void add_term(float* __restrict sum, const float* __restrict values, float factor, bool first,
              index_t count) {
    if (first) {
        for (index_t i = 0; i < count; ++i) sum[i] = factor * values[i];
    } else {
        for (index_t i = 0; i < count; ++i) sum[i] += factor * values[i];
    }
}

void add_term(float* __restrict sum, const float* __restrict values,
              const float* __restrict factors, bool first, index_t count) {
    if (first) {
        for (index_t i = 0; i < count; ++i) sum[i] = factors[i] * values[i];
    } else {
        for (index_t i = 0; i < count; ++i) sum[i] += factors[i] * values[i];
    }
}

/// From `position` on, how many positions of an axis are covered by the same parts.
index_t same_cover(std::span<const stitch_part> parts, std::size_t cut, index_t position,
                   index_t limit) {
    index_t end = limit;
    for (const stitch_part& part : parts) {
        for (const index_t edge : {part.begin, part.begin + part.prediction.extents[cut]}) {
            if (edge > position) end = std::min(end, edge);
        }
    }
    return end - position;
}

/// Calls take(at, count, sum) for runs of rows, with the stitched values.
template <class Take>
void stitch_runs(const std::array<index_t, 5>& extents, axis along,
                 std::span<const stitch_part> parts, Take&& take) {
    const std::size_t cut = 2 + index_of(along);
    const bool cuts_rows = along == axis::w;
    const index_t width = extents[4];
    std::array<float, block> sum;
    std::array<float, block> room;

    // One run of a row, all of its positions covered by the same parts.
    const auto run = [&](std::array<index_t, 5> at, index_t count) {
        bool first = true;
        for (const stitch_part& part : parts) {
            std::array<index_t, 5> inside = at;
            inside[cut] -= part.begin;
            if (inside[cut] < 0 || inside[cut] >= part.prediction.extents[cut]) continue;
            const const_latent_view& view = part.prediction;
            const float* values =
                load(view, view.offset(inside), view.strides[4], count, room.data());
            const float* weights = part.weights.data() + inside[cut];
            if (cuts_rows) {
                add_term(sum.data(), values, weights, first, count);
            } else {
                add_term(sum.data(), values, *weights, first, count);
            }
            first = false;
        }
        if (first) std::fill_n(sum.begin(), count, 0.0f);
        take(at, count, sum.data());
    };

    std::array<index_t, 5> at{};
    for (at[0] = 0; at[0] < extents[0]; ++at[0])
        for (at[1] = 0; at[1] < extents[1]; ++at[1])
            for (at[2] = 0; at[2] < extents[2]; ++at[2])
                for (at[3] = 0; at[3] < extents[3]; ++at[3])
                    for (at[4] = 0; at[4] < width;) {
                        index_t count = std::min(block, width - at[4]);
                        if (cuts_rows) count = same_cover(parts, cut, at[4], at[4] + count);
                        run(at, count);
                        at[4] += count;
                    }
}

using run_of_each = std::array<std::array<float, block>, max_operands>;

/// The sums of a run for all outputs, from the values of the inputs that are read.
void combine_run(std::size_t rows, std::size_t columns, std::span<const float> coefficients,
                 const std::array<const float*, max_operands>& values, index_t count,
                 run_of_each& sums) {
    for (std::size_t r = 0; r < rows; ++r) {
        bool first = true;
        for (std::size_t k = 0; k < columns; ++k) {
            const float coefficient = coefficients[r * columns + k];
            if (coefficient == 0) continue;
            add_term(sums[r].data(), values[k], coefficient, first, count);
            first = false;
        }
        if (first) std::fill_n(sums[r].begin(), count, 0.0f);
    }
}

}  // namespace

void host::copy(const_latent_view source, latent_view target, stream_ref) const {
    detail::check_copy(source, target, space());
    if (detail::is_same_memory(source, target)) return;
    detail::run_loop<2> loop(target.extents);
    loop.add(target.strides);
    loop.add(source.strides);
    visit_floating(source.type, [&]<class Source>() {
        visit_floating(target.type, [&]<class Target>() {
            const Source* from = source.as<Source>();
            Target* to = target.as<Target>();
            loop([&](const auto& offsets, index_t count, const auto& steps) {
                convert(from + offsets[1], steps[1], to + offsets[0], steps[0], count);
            });
        });
    });
}

void host::copy_all(std::span<const copy_pair> copies, stream_ref stream) const {
    for (const copy_pair& c : copies) copy(c.source, c.target, stream);
}

void host::round(latent_view values, dtype type, stream_ref) const {
    detail::check_round(values, type, space());
    if (type == values.type) return;
    detail::run_loop<1> loop(values.extents);
    loop.add(values.strides);
    visit_floating(values.type, [&]<class Value>() {
        visit_floating(type, [&]<class Rounded>() {
            Value* data = values.as<Value>();
            loop([&](const auto& offsets, index_t count, const auto& steps) {
                for (index_t done = 0; done < count; done += block) {
                    const index_t size = std::min(block, count - done);
                    Value* run = data + offsets[0] + done * steps[0];
                    std::array<Rounded, block> room;
                    convert(run, steps[0], room.data(), index_t{1}, size);
                    convert(room.data(), index_t{1}, run, steps[0], size);
                }
            });
        });
    });
}

void host::stitch(latent_view output, axis along, std::span<const stitch_part> parts,
                  stream_ref) const {
    detail::check_stitch(output, along, parts, space());
    stitch_runs(output.extents, along, parts,
                [&](const std::array<index_t, 5>& at, index_t count, const float* sum) {
                    store(sum, output, output.offset(at), output.strides[4], count);
                });
}

void host::linear_combination(std::span<const const_latent_view> inputs,
                              std::span<const float> coefficients,
                              std::span<const latent_view> outputs, stream_ref) const {
    detail::check_linear_combination(inputs, coefficients, outputs, space());
    if (outputs.empty()) return;

    const std::size_t rows = outputs.size();
    const std::size_t columns = inputs.size();
    detail::run_loop<2 * max_operands> loop(outputs[0].extents);
    for (const latent_view& output : outputs) loop.add(output.strides);
    std::array<bool, max_operands> is_read{};
    for (std::size_t k = 0; k < columns; ++k) {
        is_read[k] = detail::is_read(k, columns, coefficients);
        // An input that is not read must not shorten the runs.
        loop.add(is_read[k] ? inputs[k].strides : outputs[0].strides);
    }

    run_of_each room;
    run_of_each sums;
    std::array<const float*, max_operands> values{};
    loop([&](const auto& offsets, index_t count, const auto& steps) {
        for (index_t done = 0; done < count; done += block) {
            const index_t size = std::min(block, count - done);
            for (std::size_t k = 0; k < columns; ++k) {
                if (!is_read[k]) continue;
                const index_t step = steps[rows + k];
                values[k] =
                    load(inputs[k], offsets[rows + k] + done * step, step, size, room[k].data());
            }
            // An output may be an input: nothing is stored before all sums of the block are done.
            combine_run(rows, columns, coefficients, values, size, sums);
            for (std::size_t r = 0; r < rows; ++r) {
                store(sums[r].data(), outputs[r], offsets[r] + done * steps[r], steps[r], size);
            }
        }
    });
}

void host::stitch_combination(const stitched_input& stitched,
                              std::span<const const_latent_view> inputs,
                              std::span<const float> coefficients,
                              std::span<const latent_view> outputs, stream_ref stream) const {
    detail::check_stitch_combination(stitched, inputs, coefficients, outputs, space());
    if (!detail::is_read(stitched.index, inputs.size(), coefficients)) {
        linear_combination(inputs, coefficients, outputs, stream);
        return;
    }
    run_of_each room;
    run_of_each sums;
    std::array<float, block> rounded;
    std::array<const float*, max_operands> values{};
    const auto combine = [&](const std::array<index_t, 5>& at, index_t count, const float* sum) {
        visit_floating(stitched.type, [&]<class T>() {
            std::array<T, block> narrow;
            convert(sum, index_t{1}, narrow.data(), index_t{1}, count);
            convert(narrow.data(), index_t{1}, rounded.data(), index_t{1}, count);
        });
        for (std::size_t k = 0; k < inputs.size(); ++k) {
            if (k == stitched.index || !detail::is_read(k, inputs.size(), coefficients)) continue;
            values[k] =
                load(inputs[k], inputs[k].offset(at), inputs[k].strides[4], count, room[k].data());
        }
        values[stitched.index] = rounded.data();
        combine_run(outputs.size(), inputs.size(), coefficients, values, count, sums);
        for (std::size_t r = 0; r < outputs.size(); ++r) {
            const latent_view& output = outputs[r];
            store(sums[r].data(), output, output.offset(at), output.strides[4], count);
        }
    };
    stitch_runs(outputs[0].extents, stitched.along, stitched.parts, combine);
}

void host::merge_attention(latent_view output, latent_view lse, const_latent_view part,
                           const_latent_view part_lse, stream_ref) const {
    detail::check_merge(output, lse, part, part_lse, space());
    std::array<float, block> sum;
    std::array<float, block> room;
    const auto merge_head = [&](std::array<index_t, 5> at) {
        float& log = lse.as<float>()[lse.offset(at)];
        const auto weights = detail::merge(log, part_lse.as<float>()[part_lse.offset(at)]);
        log = weights.lse;
        for (index_t done = 0; done < output.extents[4]; done += block) {
            const index_t count = std::min(block, output.extents[4] - done);
            at[4] = done;
            bool first = true;
            const auto add = [&](const const_latent_view& view, float weight) {
                if (weight == 0) return;
                const index_t step = view.strides[4];
                add_term(sum.data(), load(view, view.offset(at), step, count, room.data()), weight,
                         first, count);
                first = false;
            };
            add(output, weights.first);
            add(part, weights.second);
            if (first) std::fill_n(sum.begin(), count, 0.0f);
            store(sum.data(), output, output.offset(at), output.strides[4], count);
        }
    };
    std::array<index_t, 5> at{};
    for (at[0] = 0; at[0] < output.extents[0]; ++at[0])
        for (at[1] = 0; at[1] < output.extents[1]; ++at[1])
            for (at[2] = 0; at[2] < output.extents[2]; ++at[2])
                for (at[3] = 0; at[3] < output.extents[3]; ++at[3]) merge_head(at);
}

}  // namespace latpar::inline v0::kernel
