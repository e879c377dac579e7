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

/// Queries, keys and values of all tokens, joint ones first and last; in k and v the key-only rows
/// of all ranks lie behind the tokens of all ranks.
struct attention_case {
    latpar::layer::attention_shape shape;
    latpar::layer::token_sequence sequence;
    std::vector<float> q, k, v;

    attention_case(const latpar::layer::attention_shape& heads,
                   latpar::layer::token_sequence tokens, std::mt19937& random)
        : shape(heads), sequence(std::move(tokens)) {
        std::normal_distribution<float> normal;
        const auto fill = [&](std::vector<float>& values, latpar::index_t rows,
                              latpar::index_t count) {
            values.resize(static_cast<std::size_t>(rows * count * shape.head_dim));
            for (float& x : values) x = normal(random);
        };
        fill(q, all(), shape.heads);
        fill(k, all() + key_only(), shape.key_heads);
        fill(v, all() + key_only(), shape.key_heads);
    }

    [[nodiscard]] latpar::index_t all() const {
        latpar::index_t out = sequence.joint_front + sequence.joint_back;
        for (const latpar::index_t n : sequence.tokens) out += n;
        return out;
    }

    /// The key-only rows of the ranks before `rank`; of all without one.
    [[nodiscard]] latpar::index_t key_only(int rank = -1) const {
        const int ranks = rank < 0 ? static_cast<int>(sequence.tokens.size()) : rank;
        latpar::index_t out = 0;
        for (int r = 0; r < ranks; ++r) out += sequence.key_only_of(r);
        return out;
    }

    /// The rows of `values` (queries, or their output) that a rank passes: joint in front, own,
    /// joint behind.
    [[nodiscard]] std::vector<float> rows_of(const std::vector<float>& values, int rank) const {
        return rows_of(values, shape.heads, rank, false);
    }
    /// Of keys or values: the rank's key-only rows too, behind its own tokens.
    [[nodiscard]] std::vector<float> key_rows_of(const std::vector<float>& values, int rank) const {
        return rows_of(values, shape.key_heads, rank, true);
    }

    /// The output of all tokens, over those that are keys, on one rank.
    [[nodiscard]] std::vector<float> expected() const {
        std::vector<float> keys;
        std::vector<float> values;
        const auto row = static_cast<std::ptrdiff_t>(shape.key_heads * shape.head_dim);
        latpar::index_t count = 0;
        const latpar::index_t back = all() - sequence.joint_back;  // of tokens
        for (latpar::index_t i = 0; i < all() + key_only(); ++i) {
            const bool is_token = i < back || i >= back + key_only();
            const latpar::index_t token = i < back ? i : i - key_only();
            if (is_token && !sequence.is_key.empty() &&
                !sequence.is_key[static_cast<std::size_t>(token)]) {
                continue;
            }
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

private:
    [[nodiscard]] std::vector<float> rows_of(const std::vector<float>& values,
                                             latpar::index_t heads, int rank,
                                             bool with_key_only) const {
        const auto row = static_cast<std::ptrdiff_t>(heads * shape.head_dim);
        std::vector<float> out;
        const auto add = [&](latpar::index_t begin, latpar::index_t count) {
            const auto first = values.begin() + begin * row;
            out.insert(out.end(), first, first + count * row);
        };
        const latpar::index_t back = all() - sequence.joint_back;
        latpar::index_t begin = sequence.joint_front;
        for (int r = 0; r < rank; ++r) begin += sequence.tokens[static_cast<std::size_t>(r)];
        add(0, sequence.joint_front);
        add(begin, sequence.tokens[static_cast<std::size_t>(rank)]);
        if (with_key_only) add(back + key_only(rank), sequence.key_only_of(rank));
        add(back + (with_key_only ? key_only() : 0), sequence.joint_back);
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
    const latpar::index_t queries = c.sequence.tokens[static_cast<std::size_t>(rank)] +
                                    c.sequence.joint_front + c.sequence.joint_back;
    const latpar::index_t keys = queries + c.sequence.key_only_of(rank);
    struct tensor {
        std::vector<float> memory;
        latpar::layer::heads_view view;
    };
    const auto place = [&](const std::vector<float>& values, latpar::index_t rows,
                           latpar::index_t heads) {
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
    const tensor q = place(c.rows_of(c.q, rank), queries, c.shape.heads);
    const tensor k = place(c.key_rows_of(c.k, rank), keys, c.shape.key_heads);
    const tensor v = place(c.key_rows_of(c.v, rank), keys, c.shape.key_heads);
    tensor out = place({}, queries, c.shape.heads);
    policy(q.view, k.view, v.view, out.view);
    std::vector<float> dense;
    for (latpar::index_t i = 0; i < queries; ++i) {
        const auto first = out.memory.begin() + i * out.view.strides[0];
        dense.insert(dense.end(), first, first + c.shape.heads * c.shape.head_dim);
    }
    return dense;
}
