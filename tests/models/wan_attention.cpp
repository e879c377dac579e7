// SPDX-License-Identifier: Apache-2.0
// Attention, kernels and threads below the Wan transformer.
#include "wan_support.hpp"

#include <support/catch.hpp>

#include <atomic>
#include <limits>
#include <set>

using namespace latpar;

namespace {

struct problem {
    index_t queries, keys, heads, key_heads, dim;
    std::vector<float> q, k, v;

    problem(index_t queries_, index_t keys_, index_t heads_, index_t key_heads_, index_t dim_,
            float size = 1)
        : queries(queries_),
          keys(keys_),
          heads(heads_),
          key_heads(key_heads_),
          dim(dim_),
          q(filled(queries * heads * dim, 1)),
          k(filled(keys * key_heads * dim, 2)),
          v(filled(keys * key_heads * dim, 3)) {
        for (float& value : q) value *= size;
    }
    [[nodiscard]] wan::const_heads_view q_view() const {
        return make_view(q.data(), std::array{queries, heads, dim});
    }
    [[nodiscard]] wan::const_heads_view k_view() const {
        return make_view(k.data(), std::array{keys, key_heads, dim});
    }
    [[nodiscard]] wan::const_heads_view v_view() const {
        return make_view(v.data(), std::array{keys, key_heads, dim});
    }

    // In double precision, with all scores at once.
    void reference(std::vector<float>& out, std::vector<float>& lse) const {
        out.assign(q.size(), 0);
        lse.assign(static_cast<std::size_t>(queries * heads), 0);
        std::vector<double> scores(static_cast<std::size_t>(keys));
        for (index_t i = 0; i < queries; ++i) {
            for (index_t h = 0; h < heads; ++h) {
                const index_t kh = h * key_heads / heads;
                double largest = -std::numeric_limits<double>::infinity();
                for (index_t j = 0; j < keys; ++j) {
                    double score = 0;
                    for (index_t d = 0; d < dim; ++d) {
                        score += double{at(q, i, h, heads, d)} * double{at(k, j, kh, key_heads, d)};
                    }
                    score /= std::sqrt(static_cast<double>(dim));
                    scores[static_cast<std::size_t>(j)] = score;
                    largest = std::max(largest, score);
                }
                double sum = 0;
                std::vector<double> row(static_cast<std::size_t>(dim));
                for (index_t j = 0; j < keys; ++j) {
                    const double weight = std::exp(scores[static_cast<std::size_t>(j)] - largest);
                    sum += weight;
                    for (index_t d = 0; d < dim; ++d) {
                        row[static_cast<std::size_t>(d)] +=
                            weight * double{at(v, j, kh, key_heads, d)};
                    }
                }
                for (index_t d = 0; d < dim; ++d) {
                    out[static_cast<std::size_t>((i * heads + h) * dim + d)] =
                        static_cast<float>(row[static_cast<std::size_t>(d)] / sum);
                }
                lse[static_cast<std::size_t>(i * heads + h)] =
                    static_cast<float>(largest + std::log(sum));
            }
        }
    }

private:
    [[nodiscard]] float at(const std::vector<float>& from, index_t token, index_t head,
                           index_t count, index_t d) const {
        return from[static_cast<std::size_t>((token * count + head) * dim + d)];
    }
};

struct answer {
    std::vector<float> out, lse;
};

answer attend(const problem& p, wan::local_attention& attention) {
    answer a{std::vector<float>(p.q.size()),
             std::vector<float>(static_cast<std::size_t>(p.queries * p.heads))};
    attention(p.q_view(), p.k_view(), p.v_view(),
              make_view(a.out.data(), std::array{p.queries, p.heads, p.dim}),
              make_view(a.lse.data(), std::array{p.queries, p.heads}));
    return a;
}

}  // namespace

TEST_CASE("attention equals a softmax over all scores") {
    // Tokens, heads, head dimensions and blocks that do and do not come out even.
    const std::vector<problem> problems{
        {1, 1, 1, 1, 6},      {5, 3, 2, 2, 6},     {96, 256, 1, 1, 24},  {97, 257, 3, 3, 10},
        {200, 700, 4, 2, 12}, {30, 513, 6, 1, 48}, {100, 300, 2, 2, 64}, {70, 300, 1, 1, 8, 300}};
    for (const std::string_view kernels : wan::available_kernels()) {
        wan::local_attention attention(executor_of(2, kernels));
        for (const problem& p : problems) {
            INFO(kernels << ' ' << p.queries << ' ' << p.keys << ' ' << p.heads << ' ' << p.dim);
            std::vector<float> out;
            std::vector<float> lse;
            p.reference(out, lse);
            const answer found = attend(p, attention);
            CHECK(relative_l2(found.out, out) < 2e-5);
            CHECK(relative_l2(found.lse, lse) < 2e-6);
        }
    }
}

TEST_CASE("attention without keys is zero") {
    wan::local_attention attention(executor_of(1));
    const answer found = attend(problem(3, 0, 2, 2, 8), attention);
    CHECK(std::ranges::all_of(found.out, [](float x) { return x == 0; }));
    CHECK(std::ranges::all_of(found.lse, [](float x) { return std::isinf(x) && x < 0; }));
}

TEST_CASE("partial attentions merge by their log-sum-exp") {
    const problem whole(50, 600, 2, 2, 12);
    wan::local_attention attention(executor_of(1));
    const answer expected = attend(whole, attention);
    std::array<answer, 2> parts;
    index_t begin = 0;
    for (std::size_t i = 0; i < 2; ++i) {
        const index_t keys = i == 0 ? 130 : 470;
        problem part = whole;
        part.keys = keys;
        part.k.assign(whole.k.begin() + begin * 24, whole.k.begin() + (begin + keys) * 24);
        part.v.assign(whole.v.begin() + begin * 24, whole.v.begin() + (begin + keys) * 24);
        parts[i] = attend(part, attention);
        begin += keys;
    }
    std::vector<float> merged(expected.out.size());
    for (std::size_t row = 0; row < expected.lse.size(); ++row) {
        const double a = std::exp(double{parts[0].lse[row]} - double{expected.lse[row]});
        const double b = std::exp(double{parts[1].lse[row]} - double{expected.lse[row]});
        CHECK(std::abs(a + b - 1) < 1e-5);
        for (std::size_t d = row * 12; d < (row + 1) * 12; ++d) {
            merged[d] = static_cast<float>(a * parts[0].out[d] + b * parts[1].out[d]);
        }
    }
    CHECK(relative_l2(merged, expected.out) < 1e-6);
}

TEST_CASE("attention takes strides and may overwrite its queries") {
    problem p(120, 120, 2, 2, 8);
    wan::local_attention attention(executor_of(2));
    const answer expected = attend(p, attention);
    // q, k and v side by side in one row, as a fused projection leaves them.
    std::vector<float> fused(120 * 48);
    for (index_t i = 0; i < 120; ++i) {
        std::copy_n(p.q.begin() + i * 16, 16, fused.begin() + i * 48);
        std::copy_n(p.k.begin() + i * 16, 16, fused.begin() + i * 48 + 16);
        std::copy_n(p.v.begin() + i * 16, 16, fused.begin() + i * 48 + 32);
    }
    auto view = make_view(fused.data(), std::array<index_t, 3>{120, 2, 8});
    view.strides[0] = 48;
    auto k = view;
    k.data += 16 * sizeof(float);
    auto v = view;
    v.data += 32 * sizeof(float);
    attention(view, k, v, view);
    std::vector<float> found;
    for (index_t i = 0; i < 120; ++i) {
        found.insert(found.end(), fused.begin() + i * 48, fused.begin() + i * 48 + 16);
    }
    CHECK(identical(found, expected.out));
}

TEST_CASE("attention refuses shapes that do not fit") {
    wan::local_attention attention(executor_of(1));
    const problem p(4, 5, 2, 2, 8);
    const problem three(4, 5, 3, 3, 8);
    const problem other(4, 5, 2, 2, 6);
    std::vector<float> out(p.q.size());
    const auto to = make_view(out.data(), std::array<index_t, 3>{4, 2, 8});
    CHECK_THROWS_WITH(attention(p.q_view(), three.k_view(), three.v_view(), to),
                      ContainsSubstring("2 query heads cannot share 3"));
    CHECK_THROWS_AS(attention(p.q_view(), other.k_view(), other.v_view(), to), usage_error);
    CHECK_THROWS_AS(attention(p.q_view(), p.k_view(), three.v_view(), to), usage_error);
    auto transposed = p.q_view();
    transposed.strides = {1, 4, 8};
    CHECK_THROWS_WITH(attention(transposed, p.k_view(), p.v_view(), to),
                      ContainsSubstring("dense head dimension"));
    auto narrow = p.v_view();
    narrow.type = dtype::bf16;
    CHECK_THROWS_WITH(attention(p.q_view(), p.k_view(), narrow, to),
                      ContainsSubstring("v must be host memory of f32"));
    std::vector<float> logs(8);
    auto lse = make_view(logs.data(), std::array<index_t, 2>{4, 2});
    lse.space = memory_space::cuda;
    CHECK_THROWS_WITH(attention(p.q_view(), p.k_view(), p.v_view(), to, lse),
                      ContainsSubstring("of the queries in host memory"));
    CHECK_THROWS_WITH(attention(p.q_view(), p.k_view(), p.v_view(), to,
                                make_view(out.data(), std::array<index_t, 2>{4, 3})),
                      ContainsSubstring("lse"));
}

TEST_CASE("kernels give the same wherever the memory begins") {
    constexpr index_t rows = 7;
    constexpr index_t width = 45;
    constexpr index_t slack = 64;
    for (const std::string_view name : wan::available_kernels()) {
        const wan::kernel_table& kernels = wan::find_kernels(name);
        std::vector<float> first;
        for (index_t shift = 0; shift < 17; ++shift) {
            INFO(name << ", shifted by " << shift);
            // Every argument begins elsewhere.
            std::vector<std::vector<float>> store;
            const auto place = [&](index_t count, float seed) {
                auto& block = store.emplace_back(static_cast<std::size_t>(count + slack));
                float* at =
                    block.data() + (shift * (static_cast<index_t>(store.size()) % 3 + 1)) % slack;
                fill({at, static_cast<std::size_t>(count)}, seed);
                return at;
            };
            std::vector<float> found;
            const auto keep = [&](const float* values, index_t count) {
                found.insert(found.end(), values, values + count);
            };
            const float* x = place(rows * width, 1);
            const float* a = place(width, 2);
            const float* b = place(width, 3);
            const float* weight = place(width * width, 4);
            float* y = place(rows * width, 0);
            for (const index_t count : {index_t{1}, rows}) {
                kernels.linear(x, count, width, weight, a, width, y);
                keep(y, count * width);
            }
            kernels.layer_norm(x, rows, width, 1e-6f, a, b, y);
            keep(y, rows * width);
            kernels.rms_norm(x, rows, width, 1e-6f, a, y);
            keep(y, rows * width);
            kernels.gelu(y, rows * width);
            keep(y, rows * width);
            kernels.silu(y, rows * width);
            keep(y, rows * width);
            kernels.add_gated(y, x, b, rows, width);
            kernels.rotate(y, 1, 44, a, b);
            keep(y, rows * width);
            wan::attention_tile tile{};
            tile.q = x;
            tile.k = place(300 * width, 5);
            tile.v = place(300 * width, 6);
            tile.out = y;
            tile.q_stride = tile.k_stride = tile.v_stride = tile.out_stride = width;
            tile.queries = rows;
            tile.keys = 300;
            tile.head_dim = width;
            tile.scale = 0.3f;
            tile.scratch = place(wan::attention_scratch(width), 0);
            kernels.attend(tile);
            keep(y, rows * width);
            if (first.empty()) first = found;
            CHECK(identical(found, first));
        }
    }
}

TEST_CASE("kernels equal their formulas") {
    constexpr index_t width = 37;
    const std::vector<float> x = filled(width, 1);
    const std::vector<float> a = filled(width, 2);
    const std::vector<float> b = filled(width, 3);
    double mean = 0;
    double squares = 0;
    for (const float value : x) {
        mean += double{value} / width;
        squares += double{value} * double{value} / width;
    }
    const double variance = squares - mean * mean;
    for (const std::string_view name : wan::available_kernels()) {
        INFO(name);
        const wan::kernel_table& kernels = wan::find_kernels(name);
        std::vector<float> layer(width), rms(width), gelu = x, silu = x, added = x;
        kernels.layer_norm(x.data(), 1, width, 1e-6f, a.data(), b.data(), layer.data());
        kernels.rms_norm(x.data(), 1, width, 1e-6f, a.data(), rms.data());
        kernels.gelu(gelu.data(), width);
        kernels.silu(silu.data(), width);
        kernels.add_gated(added.data(), a.data(), nullptr, 1, width);
        for (std::size_t i = 0; i < width; ++i) {
            const double value = x[i];
            const double u =
                std::sqrt(2 / 3.14159265358979) * (value + 0.044715 * value * value * value);
            const double normal = (value - mean) / std::sqrt(variance + 1e-6);
            CHECK(std::abs(layer[i] - (normal * a[i] + b[i])) < 2e-6);
            CHECK(std::abs(rms[i] - (value / std::sqrt(squares + 1e-6) * a[i])) < 2e-6);
            CHECK(std::abs(gelu[i] - (0.5 * value * (1 + std::tanh(u)))) < 1e-6);
            CHECK(std::abs(silu[i] - (value / (1 + std::exp(-value)))) < 1e-6);
            CHECK(added[i] == x[i] + a[i]);
        }
        std::vector<float> extremes{-1e4f, -100.0f, -20.0f, 0.0f, 20.0f, 100.0f, 1e4f};
        kernels.gelu(extremes.data(), std::ssize(extremes));
        for (std::size_t i = 0; i < 3; ++i) CHECK(std::abs(extremes[i]) < 1e-6f);
        CHECK(extremes[4] == 20.0f);
        CHECK(extremes[6] == 1e4f);
    }
}

TEST_CASE("a thread pool runs every task once and reports a failure") {
    for (const int threads : {1, 2, 4}) {
        wan::thread_pool pool(threads);
        CHECK(pool.threads() == threads);
        for (const index_t count : {0, 1, 2, 3, 100}) {
            std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
            std::atomic<bool> slots_valid = true;
            pool.run(count, [&](index_t index, int slot) {
                ++calls[static_cast<std::size_t>(index)];
                if (slot < 0 || slot >= threads) slots_valid = false;
            });
            CHECK(slots_valid);
            CHECK(std::ranges::all_of(calls, [](const auto& n) { return n == 1; }));
        }
        CHECK_THROWS_WITH(pool.run(50,
                                   [](index_t index, int) {
                                       if (index == 20) throw usage_error("task 20");
                                   }),
                          ContainsSubstring("task 20"));
        std::atomic<index_t> sum = 0;
        for (int repeat = 0; repeat < 200; ++repeat) {
            pool.run(10, [&](index_t index, int) { sum += index; });
        }
        CHECK(sum == 200 * 45);
    }
    CHECK_THROWS_AS(wan::thread_pool(0), usage_error);
}
