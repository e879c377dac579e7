// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels must do, on a device or emulated: each case draws tensors, runs the
// kernels and kernel::reference on equal ones, and compares every byte in and around them.
#pragma once

#include "../kernel/random_latent.hpp"

#include <latpar/core/memory.hpp>
#include <latpar/kernel/reference.hpp>

#include <support/catch.hpp>

#include <cstring>
#include <deque>
#include <limits>

namespace kernel_cases {

using latpar::const_latent_view;
using latpar::dtype;
using latpar::index_t;
using latpar::latent_view;

template <class F>
void for_each_position(const std::array<index_t, 5>& extents, F&& f) {
    std::array<index_t, 5> at{};
    for (at[0] = 0; at[0] < extents[0]; ++at[0])
        for (at[1] = 0; at[1] < extents[1]; ++at[1])
            for (at[2] = 0; at[2] < extents[2]; ++at[2])
                for (at[3] = 0; at[3] < extents[3]; ++at[3])
                    for (at[4] = 0; at[4] < extents[4]; ++at[4]) f(std::as_const(at));
}

/// A copy of a random_latent in a lab's memory, between guards, at any multiple of its element.
///
/// A lab has `kernels()`, `memory()`, `upload(to, bytes)` and `download(bytes, from)`.
template <class Lab>
class placed {
public:
    placed(Lab& lab, random_latent& content, std::mt19937& generator)
        : lab_(&lab), like_(content.view()) {
        const index_t size = latpar::size_of(like_.type);
        begin_ = guard + (generator() % 2 ? size * static_cast<index_t>(generator() % 17) : 0);
        first_ = begin_ + (like_.data - content.bytes().data());
        const auto bytes = static_cast<index_t>(content.bytes().size());
        storage_ = latpar::buffer(begin_ + bytes + guard, lab.memory());
        before_.assign(static_cast<std::size_t>(storage_.bytes()), std::byte{0x5a});
        std::copy(content.bytes().begin(), content.bytes().end(), before_.begin() + begin_);
        lab.upload(storage_.data(), before_);
    }

    [[nodiscard]] latent_view view() const {
        latent_view out = like_;
        out.data = storage_.data() + first_;
        out.space = storage_.space();
        return out;
    }

    /// What lies there now, the guards left out.
    [[nodiscard]] std::vector<std::byte> content() const {
        const std::vector<std::byte> now = all();
        return {now.begin() + begin_, now.end() - guard};
    }

    [[nodiscard]] bool guards_hold() const {
        const std::vector<std::byte> now = all();
        return std::equal(now.begin(), now.begin() + begin_, before_.begin()) &&
               std::equal(now.end() - guard, now.end(), before_.end() - guard);
    }

    /// True if it holds what `expected` does, and nothing around it was written.
    [[nodiscard]] bool holds(const random_latent& expected) const {
        std::vector<std::byte> wanted = before_;
        std::copy(expected.bytes().begin(), expected.bytes().end(), wanted.begin() + begin_);
        return all() == wanted;
    }

private:
    static constexpr index_t guard = 256;

    [[nodiscard]] std::vector<std::byte> all() const {
        std::vector<std::byte> now(before_.size());
        lab_->download(now, storage_.data());
        return now;
    }

    Lab* lab_;
    latent_view like_;
    index_t begin_ = 0;
    index_t first_ = 0;
    latpar::buffer storage_;
    std::vector<std::byte> before_;
};

template <class Lab>
void check_copies(Lab& lab) {
    std::mt19937 generator(1);
    index_t different = 0;
    for (const dtype from : computed_types) {
        for (const dtype to : computed_types) {
            for (int trial = 0; trial < 60; ++trial) {
                const auto extents = random_extents(generator);
                random_latent source(extents, from, generator);
                random_latent target(extents, to, generator);
                const placed in(lab, source, generator);
                const placed out(lab, target, generator);
                latpar::kernel::reference{}.copy(source.view(), target.view());
                lab.kernels().copy(in.view(), out.view());
                different += !out.holds(target) || !in.holds(source);
            }
        }
    }
    CHECK(different == 0);
}

/// Boxes of larger tensors, packed and unpacked, as policies do.
template <class Lab>
void check_boxes(Lab& lab) {
    std::mt19937 generator(11);
    const auto below = [&](index_t n) {
        return static_cast<index_t>(generator() % static_cast<unsigned>(n));
    };
    index_t different = 0;
    for (int trial = 0; trial < 300; ++trial) {
        const std::array<index_t, 5> whole{1, 1 + below(4), 1 + below(5), 1 + below(9),
                                           1 + below(140)};
        latpar::box region;
        for (std::size_t i = 0; i < 3; ++i) {
            region.origin[i] = below(whole[i + 2]);
            region.extent[i] = 1 + below(whole[i + 2] - region.origin[i]);
        }
        const std::array<index_t, 5> part{1, whole[1], region.extent[0], region.extent[1],
                                          region.extent[2]};
        random_latent large(whole, random_type(generator), generator);
        random_latent small(part, random_type(generator), generator);
        const placed large_there(lab, large, generator);
        const placed small_there(lab, small, generator);
        if (trial % 2) {
            latpar::kernel::reference{}.copy(subview(large.view(), region), small.view());
            lab.kernels().copy(subview(large_there.view(), region), small_there.view());
        } else {
            latpar::kernel::reference{}.copy(small.view(), subview(large.view(), region));
            lab.kernels().copy(small_there.view(), subview(large_there.view(), region));
        }
        different += !small_there.holds(small) || !large_there.holds(large);
    }
    CHECK(different == 0);
}

/// Every half and bfloat16, NaNs included, and floats about each of them.
template <class Lab>
void check_conversions(Lab& lab) {
    std::mt19937 generator(12);
    for (const dtype from : computed_types) {
        const std::array<index_t, 5> extents{1, 1, 1, 4, 65536};
        random_latent source(extents, from, generator);
        latent_view all = source.view();
        std::array<index_t, 5> at{};
        for (at[3] = 0; at[3] < extents[3]; ++at[3]) {
            for (at[4] = 0; at[4] < extents[4]; ++at[4]) {
                const auto bits = static_cast<std::uint32_t>(at[4]);
                std::byte* const to = all.data + all.offset(at) * latpar::size_of(from);
                if (from == dtype::f32) {
                    // Floats that round to each bfloat16 and about the ties between them; shifted
                    // up, those that do so to halves.
                    constexpr std::array<std::uint32_t, 4> low{0x7fff, 0x8000, 0x8001, 0x1000};
                    const std::uint32_t value = (bits << 16) | low[static_cast<std::size_t>(at[3])];
                    std::memcpy(to, &value, 4);
                } else {
                    const auto value = static_cast<std::uint16_t>(bits);
                    std::memcpy(to, &value, 2);
                }
            }
        }
        const placed in(lab, source, generator);
        for (const dtype to : computed_types) {
            random_latent target(extents, to, generator);
            const placed out(lab, target, generator);
            latpar::kernel::reference{}.copy(source.view(), target.view());
            lab.kernels().copy(in.view(), out.view());
            CHECK(out.holds(target));
        }
    }
    // All floats between two halves, about every tie of them, through the subnormal ones.
    const std::array<index_t, 5> extents{1, 1, 1, 1, 65536 * 3};
    random_latent source(extents, dtype::f32, generator);
    latent_view all = source.view();
    for (index_t i = 0; i < extents[4]; ++i) {
        const latpar::float16 half{static_cast<std::uint16_t>(i / 3)};
        // Half an ulp of the half above it, where float32 has 13 bits more.
        float value = latpar::to_float(half);
        if (std::isfinite(value)) {
            const float next =
                latpar::to_float(latpar::float16{static_cast<std::uint16_t>(half.bits + 1)});
            if (std::isfinite(next)) value += 0.5f * (next - value);
            if (i % 3 == 1) value = std::nextafter(value, std::numeric_limits<float>::infinity());
            if (i % 3 == 2) value = std::nextafter(value, -std::numeric_limits<float>::infinity());
        }
        std::memcpy(all.data + i * all.strides[4] * 4, &value, 4);
    }
    const placed in(lab, source, generator);
    random_latent target(extents, dtype::f16, generator);
    const placed out(lab, target, generator);
    latpar::kernel::reference{}.copy(source.view(), target.view());
    lab.kernels().copy(in.view(), out.view());
    CHECK(out.holds(target));
}

template <class Lab>
void check_copy_all(Lab& lab, std::size_t count) {
    std::mt19937 generator(4);
    std::deque<random_latent> sources;
    std::deque<random_latent> targets;
    std::deque<placed<Lab>> in;
    std::deque<placed<Lab>> out;
    std::vector<latpar::kernel::copy_pair> copies;
    std::vector<latpar::kernel::copy_pair> expected;
    for (std::size_t k = 0; k < count; ++k) {
        const auto extents = random_extents(generator);
        sources.emplace_back(extents, random_type(generator), generator);
        targets.emplace_back(extents, random_type(generator), generator);
        in.emplace_back(lab, sources[k], generator);
        out.emplace_back(lab, targets[k], generator);
        copies.push_back({in[k].view(), out[k].view()});
        expected.push_back({sources[k].view(), targets[k].view()});
    }
    latpar::kernel::reference{}.copy_all(expected);
    lab.kernels().copy_all(copies);
    index_t different = 0;
    for (std::size_t k = 0; k < count; ++k) different += !out[k].holds(targets[k]);
    CHECK(different == 0);
}

template <class Lab>
void check_rounding(Lab& lab) {
    std::mt19937 generator(3);
    index_t different = 0;
    for (const dtype type : computed_types) {
        for (const dtype to : computed_types) {
            for (int trial = 0; trial < 40; ++trial) {
                random_latent values(random_extents(generator), type, generator);
                const placed there(lab, values, generator);
                latpar::kernel::reference{}.round(values.view(), to);
                lab.kernels().round(there.view(), to);
                different += !there.holds(values);
            }
        }
    }
    CHECK(different == 0);
}

/// Parts of up to `longest` positions each, drawn about an output of these extents, here and in a
/// lab's memory.
template <class Lab>
class drawn_parts {
public:
    drawn_parts(Lab& lab, const std::array<index_t, 5>& extents, std::size_t cut, std::size_t count,
                index_t longest, std::mt19937& generator) {
        for (std::size_t k = 0; k < count; ++k) {
            auto part_extents = extents;
            part_extents[cut] = static_cast<index_t>(generator() % static_cast<unsigned>(longest));
            predictions_.emplace_back(part_extents, random_type(generator), generator);
            predictions_there_.emplace_back(lab, predictions_[k], generator);
            auto& own = weights_.emplace_back();
            for (index_t i = 0; i < part_extents[cut]; ++i) {
                own.push_back(static_cast<float>(generator() % 9) / 7);
            }
            // Beyond the output on either side.
            const index_t begin =
                static_cast<index_t>(generator() % static_cast<unsigned>(longest + 10)) -
                longest / 2;
            here.push_back({predictions_[k].view(), begin, own});
            there.push_back({predictions_there_[k].view(), begin, own});
        }
    }
    // Views point into it.
    drawn_parts(const drawn_parts&) = delete;
    drawn_parts& operator=(const drawn_parts&) = delete;

    /// What the weights are after a call must not matter.
    void spoil_weights() {
        for (auto& own : weights_) std::fill(own.begin(), own.end(), -1.0f);
    }

    std::vector<latpar::kernel::stitch_part> here;
    std::vector<latpar::kernel::stitch_part> there;

private:
    std::deque<random_latent> predictions_;
    std::deque<placed<Lab>> predictions_there_;
    std::deque<std::vector<float>> weights_;
};

template <class Lab>
void check_stitch(Lab& lab, latpar::axis along, int trials, std::size_t parts, index_t longest) {
    std::mt19937 generator(4 + static_cast<unsigned>(parts));
    const std::size_t cut = 2 + index_of(along);
    index_t different = 0;
    for (int trial = 0; trial < trials; ++trial) {
        auto extents = random_extents(generator);
        if (longest > 30) extents[cut] = longest;
        random_latent output(extents, random_type(generator), generator);
        const placed output_there(lab, output, generator);
        drawn_parts<Lab> drawn(lab, extents, cut, generator() % (parts + 1), longest, generator);
        latpar::kernel::reference{}.stitch(output.view(), along, drawn.here);
        lab.kernels().stitch(output_there.view(), along, drawn.there);
        drawn.spoil_weights();
        different += !output_there.holds(output);
    }
    CHECK(different == 0);
}

/// Up to `most` inputs and as many outputs, each its own tensor or one of the inputs.
/// The same draws for the reference and for what is compared with it.
inline std::mt19937 generator_of(int trial, std::size_t i) {
    return std::mt19937(static_cast<unsigned>(trial) * 100 + static_cast<unsigned>(i));
}

template <class Lab>
void check_combinations(Lab& lab, int trials, std::size_t most, bool is_remote = false) {
    std::mt19937 generator(5);
    constexpr std::array<float, 6> drawn{0, 0, 1, -1, 0.3f, -1.7f};
    index_t different = 0;
    for (int trial = 0; trial < trials; ++trial) {
        const auto extents = random_extents(generator);
        const std::size_t input_count = 1 + generator() % most;
        const std::size_t output_count = 1 + generator() % most;
        std::deque<random_latent> tensors;
        std::deque<placed<Lab>> tensors_there;
        for (std::size_t i = 0; i < input_count + output_count; ++i) {
            tensors.emplace_back(extents, random_type(generator), generator);
            tensors_there.emplace_back(lab, tensors[i], generator);
        }
        std::vector<std::size_t> targets(tensors.size());
        std::iota(targets.begin(), targets.end(), std::size_t{0});
        std::shuffle(targets.begin(), targets.end(), generator);
        targets.resize(output_count);
        std::vector<float> coefficients(input_count * output_count);
        for (float& value : coefficients) value = drawn[generator() % drawn.size()];

        const auto is_read = [&](std::size_t input) {
            for (std::size_t r = 0; r < output_count; ++r) {
                if (coefficients[r * input_count + input] != 0) return true;
            }
            return false;
        };
        const auto run = [&](const auto& kernels, auto& on) {
            std::vector<const_latent_view> inputs;
            std::vector<latent_view> outputs;
            for (std::size_t i = 0; i < input_count; ++i) {
                inputs.emplace_back(on[i].view());
                // What is not read need not be there.
                const bool is_there = generator_of(trial, i)() % 2 == 0 || is_read(i);
                if (!is_there) inputs.back() = {};
            }
            for (const std::size_t i : targets) outputs.push_back(on[i].view());
            if constexpr (requires {
                              kernels.combine_with_fetched(inputs, coefficients, outputs);
                          }) {
                if (is_remote) {
                    kernels.combine_with_fetched(inputs, coefficients, outputs);
                    return;
                }
            }
            kernels.linear_combination(inputs, coefficients, outputs);
        };
        run(latpar::kernel::reference{}, tensors);
        run(lab.kernels(), tensors_there);
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            different += !tensors_there[i].holds(tensors[i]);
        }
    }
    CHECK(different == 0);
}

/// A latent of so many rows that blocks take turns, parts meeting within and between groups.
template <class Lab>
void check_large_stitch(Lab& lab) {
    std::mt19937 generator(31);
    const std::array<index_t, 5> extents{1, 4, 32, 256, 260};
    random_latent output(extents, dtype::f32, generator);
    const placed output_there(lab, output, generator);
    std::array<index_t, 5> left_extents = extents;
    left_extents[4] = 150;
    std::array<index_t, 5> right_extents = extents;
    right_extents[4] = 131;
    random_latent left(left_extents, dtype::bf16, generator);
    random_latent right(right_extents, dtype::f32, generator);
    const placed left_there(lab, left, generator);
    const placed right_there(lab, right, generator);
    std::vector<float> weights(150);
    for (float& weight : weights) weight = static_cast<float>(generator() % 9) / 7;
    const auto parts = [&](const latent_view& a, const latent_view& b) {
        return std::array{latpar::kernel::stitch_part{a, 0, weights},
                          latpar::kernel::stitch_part{b, 129, std::span(weights).first(131)}};
    };
    latpar::kernel::reference{}.stitch(output.view(), latpar::axis::w,
                                       parts(left.view(), right.view()));
    lab.kernels().stitch(output_there.view(), latpar::axis::w,
                         parts(left_there.view(), right_there.view()));
    CHECK(output_there.holds(output));
}

/// A stitch and the combination that it goes into, against the two calls one after the other.
template <class Lab>
void check_stitch_combinations(Lab& lab, latpar::axis along, int trials, std::size_t parts,
                               index_t longest, std::size_t most) {
    std::mt19937 generator(7 + static_cast<unsigned>(parts + most));
    constexpr std::array<float, 6> drawn_coefficients{0, 0, 1, -1, 0.3f, -1.7f};
    const std::size_t cut = 2 + index_of(along);
    index_t different = 0;
    for (int trial = 0; trial < trials; ++trial) {
        auto extents = random_extents(generator);
        if (longest > 30) extents[cut] = longest;
        const std::size_t input_count = 1 + generator() % most;
        const std::size_t output_count = 1 + generator() % most;
        std::deque<random_latent> tensors;
        std::deque<placed<Lab>> tensors_there;
        for (std::size_t i = 0; i < input_count + output_count; ++i) {
            tensors.emplace_back(extents, random_type(generator), generator);
            tensors_there.emplace_back(lab, tensors[i], generator);
        }
        // Each output its own tensor or one of the inputs; the stitched one is no tensor.
        const std::size_t index = generator() % input_count;
        std::vector<std::size_t> targets(tensors.size());
        std::iota(targets.begin(), targets.end(), std::size_t{0});
        std::shuffle(targets.begin(), targets.end(), generator);
        targets.resize(output_count);
        std::vector<float> coefficients(input_count * output_count);
        for (float& value : coefficients) {
            value = drawn_coefficients[generator() % drawn_coefficients.size()];
        }
        drawn_parts<Lab> drawn(lab, extents, cut, generator() % (parts + 1), longest, generator);
        random_latent stitched(extents, random_type(generator), generator);

        const auto views = [&](auto& on, const const_latent_view& at_index) {
            std::pair<std::vector<const_latent_view>, std::vector<latent_view>> out;
            for (std::size_t i = 0; i < input_count; ++i) out.first.emplace_back(on[i].view());
            out.first[index] = at_index;
            for (const std::size_t i : targets) out.second.push_back(on[i].view());
            return out;
        };
        const latpar::kernel::stitched_input fused{index, along, stitched.view().type, drawn.there};
        const auto [inputs, outputs] = views(tensors_there, {});
        lab.kernels().stitch_combination(fused, inputs, coefficients, outputs);
        latpar::kernel::reference{}.stitch(stitched.view(), along, drawn.here);
        const auto [inputs_here, outputs_here] = views(tensors, stitched.view());
        latpar::kernel::reference{}.linear_combination(inputs_here, coefficients, outputs_here);
        drawn.spoil_weights();
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            different += !tensors_there[i].holds(tensors[i]);
        }
    }
    CHECK(different == 0);
}

/// A coefficient of zero leaves what it stands before unread: poison and empty views alike.
template <class Lab>
void check_unread_inputs(Lab& lab) {
    std::mt19937 generator(6);
    const std::array<index_t, 5> extents{1, 2, 3, 4, 37};
    random_latent value(extents, dtype::f32, generator);
    random_latent poison(extents, dtype::f32, generator);
    random_latent output(extents, dtype::f32, generator);
    const latent_view bad = poison.view();
    std::array<index_t, 5> at{};
    for (at[4] = 0; at[4] < extents[4]; ++at[4]) {
        const float nan = std::numeric_limits<float>::quiet_NaN();
        std::memcpy(bad.data + bad.offset(at) * 4, &nan, 4);
    }
    const placed value_there(lab, value, generator);
    const placed poison_there(lab, poison, generator);
    const placed output_there(lab, output, generator);
    const std::array<float, 3> coefficients{2, 0, 0};
    const latent_view to = output.view();
    const latent_view to_there = output_there.view();
    latpar::kernel::reference{}.linear_combination(
        std::array<const_latent_view, 3>{value.view(), poison.view(), {}}, coefficients, {&to, 1});
    lab.kernels().linear_combination(
        std::array<const_latent_view, 3>{value_there.view(), poison_there.view(), {}}, coefficients,
        {&to_there, 1});
    CHECK(output_there.holds(output));
}

/// Makes `got` what `there` holds.
template <class Lab>
void read_back(random_latent& got, const placed<Lab>& there) {
    const std::vector<std::byte> content = there.content();
    std::copy(content.begin(), content.end(), got.bytes().begin());
}

/// By how much `got` differs from `wanted` beyond one rounding of its type, relative to the largest
/// of `wanted`, `scale` and `least`; makes the positions of `got` those of `wanted`.
inline double excess(random_latent& got, random_latent& wanted, random_latent& scale,
                     double least) {
    const latent_view a = got.view();
    const latent_view b = wanted.view();
    const latent_view s = scale.view();
    // The spacing of numbers about 1, and of the smallest.
    const double spacing = b.type == dtype::f16 ? 0x1p-10 : b.type == dtype::bf16 ? 0x1p-7 : 0;
    const double smallest = b.type == dtype::f16 ? 0x1p-24 : 0;
    double out = 0;
    for_each_position(b.extents, [&](const std::array<index_t, 5>& at) {
        latpar::visit_floating(b.type, [&]<class T>() {
            T& mine = a.as<T>()[a.offset(at)];
            const double x = latpar::to_float(mine);
            const double y = latpar::to_float(b.as<T>()[b.offset(at)]);
            const double size =
                std::abs(static_cast<double>(latpar::to_float(s.as<T>()[s.offset(at)])));
            if (std::isnan(x) != std::isnan(y)) out = std::numeric_limits<double>::infinity();
            if (!std::isnan(y) && x != y) {
                const double rounding = std::max(spacing * std::abs(y), smallest);
                const double beyond = std::abs(x - y) - rounding;
                out = std::max(out, beyond / std::max({size, std::abs(y), least}));
            }
            mine = b.as<T>()[b.offset(at)];
        });
    });
    return out;
}

/// Bitwise where the exponentials are the host's own, else within 1e-6.
template <class Lab>
void check_merges(Lab& lab, bool bitwise) {
    constexpr float none = -std::numeric_limits<float>::infinity();
    std::mt19937 generator(9);
    index_t different = 0;
    double worst = 0;
    for (int trial = 0; trial < 300; ++trial) {
        auto extents = random_extents(generator);
        // Heads that are longer than what a block has in flight.
        if (trial % 60 == 0) extents = {1, 1, 2, 3, 4100 + trial};
        auto log_extents = extents;
        log_extents[4] = 1;
        random_latent out(extents, random_type(generator), generator);
        random_latent part(extents, random_type(generator), generator);
        random_latent logs(log_extents, dtype::f32, generator);
        random_latent part_logs(log_extents, dtype::f32, generator);
        for (random_latent* which : {&logs, &part_logs}) {
            const latent_view view = which->view();
            for_each_position(log_extents, [&](const std::array<index_t, 5>& at) {
                const float log = static_cast<float>(generator() % 4096) / 512 - 4;
                view.as<float>()[view.offset(at)] = generator() % 8 == 0 ? none : log;
            });
        }
        random_latent before = out;
        const placed out_there(lab, out, generator);
        const placed part_there(lab, part, generator);
        const placed logs_there(lab, logs, generator);
        const placed part_logs_there(lab, part_logs, generator);
        latpar::kernel::reference{}.merge_attention(out.view(), logs.view(), part.view(),
                                                    part_logs.view());
        lab.kernels().merge_attention(out_there.view(), logs_there.view(), part_there.view(),
                                      part_logs_there.view());
        different += !part_there.holds(part) || !part_logs_there.holds(part_logs);
        if (bitwise) {
            different += !out_there.holds(out) || !logs_there.holds(logs);
            continue;
        }
        // The positions within the tolerance, and not a byte between and around them touched.
        random_latent got = out;
        read_back(got, out_there);
        worst = std::max(worst, excess(got, out, before, 1e-30));
        random_latent got_logs = logs;
        read_back(got_logs, logs_there);
        worst = std::max(worst, excess(got_logs, logs, logs, 1));
        different += !(got == out) || !(got_logs == logs);
        different += !out_there.guards_hold() || !logs_there.guards_hold();
    }
    CHECK(different == 0);
    CHECK(worst <= 1e-6);
}

}  // namespace kernel_cases
