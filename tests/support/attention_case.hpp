// SPDX-License-Identifier: Apache-2.0
// One attention over tokens that several ranks share, and what it must give.
#pragma once

#include <latpar/comm/metered.hpp>
#include <latpar/layer/reference_attention.hpp>
#include <latpar/layer/ring.hpp>
#include <latpar/layer/ulysses.hpp>
#include <latpar/layer/usp.hpp>

#include <random>
#include <vector>

/// Queries, keys and values of all tokens, joint ones first and last.
struct attention_case {
    latpar::layer::attention_shape shape;
    latpar::layer::token_sequence sequence;
    std::vector<float> q, k, v;

    attention_case(const latpar::layer::attention_shape& heads,
                   latpar::layer::token_sequence tokens, std::mt19937& random)
        : shape(heads), sequence(std::move(tokens)) {
        std::normal_distribution<float> normal;
        const auto fill = [&](std::vector<float>& values, latpar::index_t count) {
            values.resize(static_cast<std::size_t>(all() * count * shape.head_dim));
            for (float& x : values) x = normal(random);
        };
        fill(q, shape.heads);
        fill(k, shape.key_heads);
        fill(v, shape.key_heads);
    }

    [[nodiscard]] latpar::index_t all() const {
        latpar::index_t out = sequence.joint_front + sequence.joint_back;
        for (const latpar::index_t n : sequence.tokens) out += n;
        return out;
    }

    /// The rows of `values` that a rank passes: joint in front, own, joint behind.
    [[nodiscard]] std::vector<float> rows_of(const std::vector<float>& values, int rank) const {
        const auto row =
            values.size() / static_cast<std::size_t>(std::max<latpar::index_t>(1, all()));
        std::vector<float> out;
        const auto add = [&](latpar::index_t begin, latpar::index_t count) {
            const auto first = values.begin() + begin * static_cast<std::ptrdiff_t>(row);
            out.insert(out.end(), first, first + count * static_cast<std::ptrdiff_t>(row));
        };
        latpar::index_t begin = sequence.joint_front;
        for (int r = 0; r < rank; ++r) begin += sequence.tokens[static_cast<std::size_t>(r)];
        add(0, sequence.joint_front);
        add(begin, sequence.tokens[static_cast<std::size_t>(rank)]);
        add(all() - sequence.joint_back, sequence.joint_back);
        return out;
    }

    /// The output of all tokens, over those that are keys, on one rank.
    [[nodiscard]] std::vector<float> expected() const {
        std::vector<float> keys;
        std::vector<float> values;
        const auto row = static_cast<std::ptrdiff_t>(shape.key_heads * shape.head_dim);
        latpar::index_t count = 0;
        for (latpar::index_t i = 0; i < all(); ++i) {
            if (!sequence.is_key.empty() && !sequence.is_key[static_cast<std::size_t>(i)]) continue;
            ++count;
            keys.insert(keys.end(), k.begin() + i * row, k.begin() + (i + 1) * row);
            values.insert(values.end(), v.begin() + i * row, v.begin() + (i + 1) * row);
        }
        std::vector<float> out(q.size());
        const std::array<latpar::index_t, 3> queries{all(), shape.heads, shape.head_dim};
        const std::array<latpar::index_t, 3> rows{count, shape.key_heads, shape.head_dim};
        latpar::layer::reference_attention{}(latpar::make_view(std::as_const(q).data(), queries),
                                             latpar::make_view(std::as_const(keys).data(), rows),
                                             latpar::make_view(std::as_const(values).data(), rows),
                                             latpar::make_view(out.data(), queries));
        return out;
    }
};

/// What one rank saw.
struct attention_report {
    std::vector<float> out;
    latpar::traffic sent_and_received;
    latpar::index_t taken_bytes = 0;
    latpar::index_t late_allocations = 0;
};

/// Runs `policy` (any layer policy) on a rank's rows of the case; q, k and v lie in one allocation
/// with a gap behind each token if `strided`.
template <class Policy>
std::vector<float> attend_on_rank(Policy& policy, const attention_case& c, int rank, bool strided) {
    const latpar::index_t rows = c.sequence.tokens[static_cast<std::size_t>(rank)] +
                                 c.sequence.joint_front + c.sequence.joint_back;
    struct tensor {
        std::vector<float> memory;
        latpar::layer::heads_view view;
    };
    const auto place = [&](const std::vector<float>& values, latpar::index_t heads) {
        const latpar::index_t row = heads * c.shape.head_dim;
        const latpar::index_t stride = row + (strided ? 5 : 0);
        tensor out{std::vector<float>(
                       static_cast<std::size_t>(std::max<latpar::index_t>(1, rows * stride))),
                   {}};
        for (latpar::index_t i = 0; i < rows && !values.empty(); ++i) {
            std::copy_n(values.begin() + i * row, row, out.memory.begin() + i * stride);
        }
        out.view = latpar::make_view(out.memory.data(),
                                     std::array<latpar::index_t, 3>{rows, heads, c.shape.head_dim});
        out.view.strides[0] = stride;
        return out;
    };
    const tensor q = place(c.rows_of(c.q, rank), c.shape.heads);
    const tensor k = place(c.rows_of(c.k, rank), c.shape.key_heads);
    const tensor v = place(c.rows_of(c.v, rank), c.shape.key_heads);
    tensor out = place({}, c.shape.heads);
    policy(q.view, k.view, v.view, out.view);
    std::vector<float> dense;
    for (latpar::index_t i = 0; i < rows; ++i) {
        const auto first = out.memory.begin() + i * out.view.strides[0];
        dense.insert(dense.end(), first, first + c.shape.heads * c.shape.head_dim);
    }
    return dense;
}
