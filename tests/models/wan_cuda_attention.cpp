// SPDX-License-Identifier: Apache-2.0
// Attention on a GPU against the softmax of all scores, and against itself.
#include "wan_cuda_support.hpp"

#include <latpar/layer/reference_attention.hpp>

#include <support/catch.hpp>

#include <algorithm>
#include <cstring>
#include <random>

using namespace latpar;
using layer::heads_view;
using kernels = wan::cuda::attention::kernels;

namespace {

struct problem {
    index_t queries, keys, heads, key_heads, dim;
    index_t gap = 0;      ///< elements between tokens of q, k, v and out that are nobody's
    float spread = 1.0f;  ///< of queries and keys
};

/// A tensor [tokens, heads, dim] on the host and on the device, of the model's type; what lies in
/// the gaps is NaN.
class heads_tensor {
public:
    heads_tensor(device_lab& lab, index_t tokens, index_t heads, index_t dim, index_t gap,
                 dtype type, float spread, std::mt19937& random)
        : extents_{tokens, heads, dim},
          strides_{heads * dim + gap, dim, 1},
          here_({tokens * strides_[0] + 1}, dtype::f32),
          there_({tokens * strides_[0] + 1}, type, lab.memory()) {
        tensor<1> rounded(here_.view().extents, type);
        std::ranges::fill(here_.elements<float>(), std::nanf(""));
        std::normal_distribution<float> normal(0, spread);
        for (index_t i = 0; i < tokens; ++i) {
            for (index_t j = 0; j < heads * dim; ++j) {
                here_.elements<float>()[static_cast<std::size_t>(i * strides_[0] + j)] =
                    normal(random);
            }
        }
        const auto row = [](auto view) { return layer_view(view); };
        kernel::host{}.copy(row(std::as_const(here_).view()), row(rounded.view()));
        kernel::host{}.copy(row(std::as_const(rounded).view()), row(here_.view()));
        lab.upload(there_.view().data,
                   {rounded.view().data, static_cast<std::size_t>(rounded.bytes())});
    }

    [[nodiscard]] heads_view here() { return view_of(here_); }
    [[nodiscard]] heads_view there() { return view_of(there_); }
    [[nodiscard]] std::vector<float> back(device_lab& lab) {
        tensor<1> raw(there_.view().extents, there_.view().type);
        tensor<1> out(there_.view().extents, dtype::f32);
        lab.download({raw.view().data, static_cast<std::size_t>(raw.bytes())}, there_.view().data);
        kernel::host{}.copy(layer_view(std::as_const(raw).view()), layer_view(out.view()));
        const auto values = out.elements<float>();
        return {values.begin(), values.end()};
    }
    [[nodiscard]] std::vector<float> values() {
        const auto all = here_.elements<float>();
        return {all.begin(), all.end()};
    }

private:
    template <class Byte>
    static basic_view<Byte, 5> layer_view(const basic_view<Byte, 1>& view) {
        const index_t n = view.extents[0];
        return {view.data, {1, 1, 1, 1, n}, {n, n, n, n, 1}, view.type, view.space};
    }
    [[nodiscard]] heads_view view_of(tensor<1>& from) const {
        return {from.view().data, extents_, strides_, from.view().type, from.view().space};
    }

    std::array<index_t, 3> extents_;
    std::array<index_t, 3> strides_;
    tensor<1> here_, there_;
};

/// The values of the tokens without the gaps.
std::vector<float> dense(const std::vector<float>& values, const problem& p) {
    std::vector<float> out;
    const index_t row = p.heads * p.dim;
    for (index_t i = 0; i < p.queries; ++i) {
        const auto begin = values.begin() + i * (row + p.gap);
        out.insert(out.end(), begin, begin + row);
    }
    return out;
}

const std::vector<problem> problems{
    {1, 1, 1, 1, 6},           {5, 3, 2, 2, 14},         {64, 64, 1, 1, 16},
    {65, 65, 3, 3, 24, 8},     {130, 257, 4, 2, 12, 3},  {33, 513, 6, 1, 48},
    {200, 300, 2, 2, 64, 16},  {127, 129, 3, 3, 128},    {150, 400, 2, 1, 128, 1},
    {70, 300, 1, 1, 8, 0, 60}, {129, 191, 5, 5, 80, 40}, {40, 100, 4, 4, 96},
    {1, 1000, 2, 2, 128},      {96, 64, 2, 2, 100, 2},   {260, 7, 2, 2, 32},
    {1, 1, 1, 1, 128},         {128, 128, 2, 1, 128},    {129, 256, 2, 2, 64},
    {257, 511, 3, 3, 128, 8},  {64, 385, 4, 2, 72, 24},  {200, 700, 2, 2, 128}};

}  // namespace

TEST_CASE("attention on a GPU is a softmax over all scores") {
    device_lab lab;
    std::mt19937 random(3);
    for (const dtype type : {dtype::f32, dtype::bf16}) {
        for (const problem& p : problems) {
            const bool is_transposed = p.keys % 2 == 0;
            CAPTURE(name_of(type), p.queries, p.keys, p.heads, p.key_heads, p.dim, p.gap);
            heads_tensor q(lab, p.queries, p.heads, p.dim, p.gap, type, p.spread, random);
            heads_tensor k(lab, p.keys, p.key_heads, p.dim, p.gap, type, 1, random);
            heads_tensor v(lab, p.keys, p.key_heads, p.dim, p.gap, type, 1, random);
            heads_tensor out(lab, p.queries, p.heads, p.dim, p.gap, type, 1, random);
            tensor<2> logs({p.queries, p.heads});
            tensor<2> logs_there({p.queries, p.heads}, dtype::f32, lab.memory());
            const std::vector<float> nothing(static_cast<std::size_t>(p.queries * p.heads), 0.0f);
            const auto lse_of = [&](tensor<2>& memory) {
                layer::lse_view view = memory.view();
                if (is_transposed) view.strides = {1, p.queries};
                return view;
            };
            layer::reference_attention{}(q.here(), k.here(), v.here(), out.here(), lse_of(logs));
            for (const auto which : {kernels::common, kernels::best}) {
                heads_tensor result(lab, p.queries, p.heads, p.dim, p.gap, type, 1, random);
                lab.upload(logs_there.view().data, std::as_bytes(std::span(nothing)));
                wan::cuda::attention{which}(q.there(), k.there(), v.there(), result.there(),
                                            lse_of(logs_there), lab.stream());
                const auto found = result.back(lab);
                CHECK(relative_l2(dense(found, p), dense(out.values(), p)) <
                      (type == dtype::f32 ? 2e-6 : 3e-3));
                CHECK(relative_l2(downloaded(lab, logs_there), logs.elements<float>()) < 1e-6);
                // The gaps are as they were.
                index_t touched = 0;
                for (index_t i = 0; i < p.queries; ++i) {
                    for (index_t j = p.heads * p.dim; j < p.heads * p.dim + p.gap; ++j) {
                        const index_t at = i * (p.heads * p.dim + p.gap) + j;
                        touched += std::isnan(found[static_cast<std::size_t>(at)]) ? 0 : 1;
                    }
                }
                CHECK(touched == 0);
            }
        }
    }
}

TEST_CASE("a head on a GPU is the same bits among any heads and queries") {
    device_lab lab;
    std::mt19937 random(4);
    for (const dtype type : {dtype::f32, dtype::bf16}) {
        for (const auto& [which, dim] :
             std::vector<std::pair<kernels, index_t>>{{kernels::best, 128},
                                                      {kernels::best, 72},
                                                      {kernels::best, 64},
                                                      {kernels::common, 128},
                                                      {kernels::best, 24},
                                                      {kernels::best, 14}}) {
            CAPTURE(name_of(type), dim, which == kernels::best);
            const problem p{300, 333, 6, 6, dim};
            heads_tensor q(lab, p.queries, p.heads, dim, 0, type, 1, random);
            heads_tensor k(lab, p.keys, p.heads, dim, 0, type, 1, random);
            heads_tensor v(lab, p.keys, p.heads, dim, 0, type, 1, random);
            heads_tensor all(lab, p.queries, p.heads, dim, 0, type, 1, random);
            heads_tensor parts(lab, p.queries, p.heads, dim, 0, type, 1, random);
            const wan::cuda::attention attend(which);
            attend(q.there(), k.there(), v.there(), all.there(), {}, lab.stream());
            const auto part = [](heads_view view, index_t first, index_t count, index_t head,
                                 index_t heads) {
                view.data +=
                    (first * view.strides[0] + head * view.strides[1]) * size_of(view.type);
                view.extents[0] = count;
                view.extents[1] = heads;
                return view;
            };
            for (const auto& [head, heads] : {std::pair<index_t, index_t>{0, 1}, {1, 3}, {4, 2}}) {
                for (const auto& [first, count] :
                     {std::pair<index_t, index_t>{0, 128}, {128, 128}, {256, 44}}) {
                    attend(part(q.there(), first, count, head, heads),
                           part(k.there(), 0, p.keys, head, heads),
                           part(v.there(), 0, p.keys, head, heads),
                           part(parts.there(), first, count, head, heads), {}, lab.stream());
                }
            }
            CHECK(identical(all.back(lab), parts.back(lab)));
            // In place of the queries.
            attend(q.there(), k.there(), v.there(), q.there(), {}, lab.stream());
            CHECK(identical(all.back(lab), q.back(lab)));
        }
    }
}

TEST_CASE("attention on a GPU without keys is zero") {
    device_lab lab;
    std::mt19937 random(5);
    for (const dtype type : {dtype::f32, dtype::bf16}) {
        heads_tensor q(lab, 70, 2, 24, 0, type, 1, random);
        heads_tensor k(lab, 1, 2, 24, 0, type, 1, random);
        heads_tensor out(lab, 70, 2, 24, 0, type, 1, random);
        heads_view none = k.there();
        none.extents[0] = 0;
        tensor<2> logs({70, 2}, dtype::f32, lab.memory());
        wan::cuda::attention{}(q.there(), none, none, out.there(), logs.view(), lab.stream());
        auto found = out.back(lab);
        found.pop_back();  // what lies behind the last token
        CHECK(std::ranges::all_of(found, [](float x) { return x == 0; }));
        CHECK(std::ranges::all_of(downloaded(lab, logs),
                                  [](float x) { return std::isinf(x) && x < 0; }));
    }
}

TEST_CASE("attention on a GPU refuses what it cannot compute") {
    device_lab lab;
    std::mt19937 random(6);
    heads_tensor q(lab, 4, 2, 24, 0, dtype::f32, 1, random);
    heads_tensor k(lab, 4, 2, 24, 0, dtype::bf16, 1, random);
    heads_tensor wide(lab, 4, 2, 130, 0, dtype::f32, 1, random);
    heads_tensor three(lab, 4, 3, 24, 0, dtype::f32, 1, random);
    wan::cuda::attention attend;
    CHECK_THROWS_WITH(attend(q.there(), k.there(), k.there(), q.there()),
                      ContainsSubstring("memory of bf16"));
    CHECK_THROWS_WITH(attend(q.here(), q.there(), q.there(), q.there()),
                      ContainsSubstring("host memory"));
    CHECK_THROWS_WITH(attend(wide.there(), wide.there(), wide.there(), wide.there()),
                      ContainsSubstring("up to 128"));
    CHECK_THROWS_WITH(attend(q.there(), three.there(), three.there(), q.there()),
                      ContainsSubstring("evenly"));
}
