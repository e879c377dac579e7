// SPDX-License-Identifier: Apache-2.0
// The kernels as plain loops.
#include "check.hpp"
#include "merge_weights.hpp"

#include <latpar/kernel/reference.hpp>

#include <cstring>

namespace latpar::inline v0::kernel {
namespace {

using position = std::array<index_t, 5>;

template <class F>
void for_each_position(const position& extents, F&& f) {
    position at{};
    for (at[0] = 0; at[0] < extents[0]; ++at[0])
        for (at[1] = 0; at[1] < extents[1]; ++at[1])
            for (at[2] = 0; at[2] < extents[2]; ++at[2])
                for (at[3] = 0; at[3] < extents[3]; ++at[3])
                    for (at[4] = 0; at[4] < extents[4]; ++at[4]) f(at);
}

float load(const const_latent_view& view, const position& at) {
    return visit_floating(view.type,
                          [&]<class T>() { return to_float(view.as<T>()[view.offset(at)]); });
}

void store(const latent_view& view, const position& at, float value) {
    visit_floating(view.type,
                   [&]<class T>() { view.as<T>()[view.offset(at)] = from_float<T>(value); });
}

/// A sum in float32 that takes its first term as it is, so that a sum of one term is that term.
class running_sum {
public:
    void add(float term) {
        value_ = empty_ ? term : value_ + term;
        empty_ = false;
    }
    [[nodiscard]] float value() const { return value_; }

private:
    float value_ = 0;
    bool empty_ = true;
};

float stitched_at(std::size_t cut, std::span<const stitch_part> parts, const position& at) {
    running_sum sum;
    for (const stitch_part& part : parts) {
        position inside = at;
        inside[cut] -= part.begin;
        if (inside[cut] < 0 || inside[cut] >= part.prediction.extents[cut]) continue;
        sum.add(part.weights[static_cast<std::size_t>(inside[cut])] *
                load(part.prediction, inside));
    }
    return sum.value();
}

/// `value_of(k)` is the value of an input that is read.
template <class ValueOf>
void combine_at(std::size_t columns, std::span<const float> coefficients,
                std::span<const latent_view> outputs, const position& at, ValueOf&& value_of) {
    std::array<float, max_operands> results{};
    for (std::size_t r = 0; r < outputs.size(); ++r) {
        running_sum sum;
        for (std::size_t k = 0; k < columns; ++k) {
            const float coefficient = coefficients[r * columns + k];
            if (coefficient != 0) sum.add(coefficient * value_of(k));
        }
        results[r] = sum.value();
    }
    for (std::size_t r = 0; r < outputs.size(); ++r) store(outputs[r], at, results[r]);
}

}  // namespace

void reference::copy(const_latent_view source, latent_view target, stream_ref) const {
    detail::check_copy(source, target, space());
    const index_t size = size_of(target.type);
    for_each_position(target.extents, [&](const position& at) {
        if (source.type == target.type) {
            std::memmove(target.data + target.offset(at) * size,
                         source.data + source.offset(at) * size, static_cast<std::size_t>(size));
        } else {
            store(target, at, load(source, at));
        }
    });
}

void reference::copy_all(std::span<const copy_pair> copies, stream_ref stream) const {
    for (const copy_pair& c : copies) copy(c.source, c.target, stream);
}

void reference::round(latent_view values, dtype type, stream_ref) const {
    detail::check_round(values, type, space());
    if (type == values.type) return;
    for_each_position(values.extents, [&](const position& at) {
        const float value = load(values, at);
        visit_floating(type, [&]<class T>() { store(values, at, to_float(from_float<T>(value))); });
    });
}

void reference::stitch(latent_view output, axis along, std::span<const stitch_part> parts,
                       stream_ref) const {
    detail::check_stitch(output, along, parts, space());
    const std::size_t cut = 2 + index_of(along);
    for_each_position(output.extents,
                      [&](const position& at) { store(output, at, stitched_at(cut, parts, at)); });
}

void reference::linear_combination(std::span<const const_latent_view> inputs,
                                   std::span<const float> coefficients,
                                   std::span<const latent_view> outputs, stream_ref) const {
    detail::check_linear_combination(inputs, coefficients, outputs, space());
    if (outputs.empty()) return;
    for_each_position(outputs[0].extents, [&](const position& at) {
        combine_at(inputs.size(), coefficients, outputs, at,
                   [&](std::size_t k) { return load(inputs[k], at); });
    });
}

void reference::stitch_combination(const stitched_input& stitched,
                                   std::span<const const_latent_view> inputs,
                                   std::span<const float> coefficients,
                                   std::span<const latent_view> outputs, stream_ref) const {
    detail::check_stitch_combination(stitched, inputs, coefficients, outputs, space());
    if (outputs.empty()) return;
    const std::size_t cut = 2 + index_of(stitched.along);
    for_each_position(outputs[0].extents, [&](const position& at) {
        combine_at(inputs.size(), coefficients, outputs, at, [&](std::size_t k) {
            if (k != stitched.index) return load(inputs[k], at);
            const float value = stitched_at(cut, stitched.parts, at);
            return visit_floating(stitched.type,
                                  [&]<class T>() { return to_float(from_float<T>(value)); });
        });
    });
}

void reference::merge_attention(latent_view output, latent_view lse, const_latent_view part,
                                const_latent_view part_lse, stream_ref) const {
    detail::check_merge(output, lse, part, part_lse, space());
    for_each_position(lse.extents, [&](const position& at) {
        const auto weights = detail::merge(load(lse, at), load(part_lse, at));
        position here = at;
        for (here[4] = 0; here[4] < output.extents[4]; ++here[4]) {
            running_sum sum;
            // What no key has written is not read.
            if (weights.first != 0) sum.add(weights.first * load(output, here));
            if (weights.second != 0) sum.add(weights.second * load(part, here));
            store(output, here, sum.value());
        }
        store(lse, at, weights.lse);
    });
}

}  // namespace latpar::inline v0::kernel
