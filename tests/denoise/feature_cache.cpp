// SPDX-License-Identifier: Apache-2.0
// The feature cache: what goes in comes out, and what was not planned is refused.
#include <latpar/denoise/feature_cache.hpp>
#include <latpar/kernel/reference.hpp>

#include <kernel/random_latent.hpp>
#include <support/catch.hpp>

#include <map>
#include <set>
#include <type_traits>

using namespace latpar;

static_assert(!std::is_copy_constructible_v<feature_cache<>>);
static_assert(!std::is_copy_assignable_v<feature_cache<>>);
static_assert(std::is_nothrow_move_constructible_v<feature_cache<>>);

namespace {

constexpr auto conditional = guidance_branch::conditional;
constexpr auto unconditional = guidance_branch::unconditional;
constexpr auto image = guidance_branch::image;

[[nodiscard]] index_t draw(std::mt19937& generator, index_t below) {
    return static_cast<index_t>(generator() % static_cast<unsigned>(below));
}

/// Random rows in a random, padded layout.
class random_rows {
public:
    random_rows(index_t rows, index_t width, dtype type, std::mt19937& generator)
        : latent_({1, 1, 1, rows, width}, type, generator) {}

    [[nodiscard]] feature_view view() {
        const latent_view v = latent_.view();
        return {v.data, {v.extents[3], v.extents[4]}, {v.strides[3], v.strides[4]}, v.type};
    }
    friend bool operator==(const random_rows&, const random_rows&) = default;

private:
    random_latent latent_;
};

[[nodiscard]] feature_view rows_of(feature_view view, index_t first, index_t count) {
    view.data += first * view.strides[0] * size_of(view.type);
    view.extents[0] = count;
    return view;
}

/// The bytes of the elements alone, in order, after a conversion to `type`.
[[nodiscard]] std::vector<std::byte> bytes_of(const_feature_view view, dtype type) {
    std::vector<std::byte> out(static_cast<std::size_t>(view.elements() * size_of(type)));
    if (out.empty()) return out;
    const feature_view dense{out.data(), view.extents, dense_strides(view.extents), type};
    kernel::reference{}.copy(detail::as_latent(view), detail::as_latent(dense));
    return out;
}

/// The same after a way through `through`.
[[nodiscard]] std::vector<std::byte> bytes_of(const_feature_view view, dtype through, dtype type) {
    const auto inside = bytes_of(view, through);
    return bytes_of({inside.data(), view.extents, dense_strides(view.extents), through}, type);
}

}  // namespace

TEST_CASE("rows come out of a feature cache as they went in") {
    std::mt19937 generator(1);
    index_t different = 0;
    index_t moved = 0;
    for (int trial = 0; trial < 400; ++trial) {
        const index_t width = 1 + draw(generator, 37);
        const extents3 grid{1 + draw(generator, 4), 1 + draw(generator, 6), 1 + draw(generator, 9)};
        const index_t tokens = volume_of(grid);
        const dtype from = random_type(generator);
        const dtype inside = random_type(generator);
        const dtype to = random_type(generator);
        feature_cache<> cache({0, 1, {conditional}, tokens + draw(generator, 3), width, inside});
        // A part of the grid, in runs of any length.
        const index_t first = draw(generator, tokens);
        const index_t last = first + 1 + draw(generator, tokens - first);
        const feature_rows rows{grid, first, last};
        const feature_key at{0, conditional};
        random_rows keys(rows.count(), width, from, generator);
        random_rows values(rows.count(), width, from, generator);
        cache.begin(at, rows);
        const auto in_runs = [&](auto&& f) {
            for (index_t row = 0; row < rows.count();) {
                const index_t count = std::min<index_t>(1 + draw(generator, 9), rows.count() - row);
                f(row, count);
                row += count;
            }
        };
        in_runs([&](index_t row, index_t count) {
            cache.append(at, first + row, rows_of(keys.view(), row, count),
                         rows_of(values.view(), row, count));
        });
        random_rows out_keys(rows.count(), width, to, generator);
        random_rows out_values(rows.count(), width, to, generator);
        random_rows expected_keys = out_keys;
        random_rows expected_values = out_values;
        in_runs([&](index_t row, index_t count) {
            cache.gather(at, first + row, rows_of(out_keys.view(), row, count),
                         rows_of(out_values.view(), row, count));
        });
        different += !(cache.rows(at) == rows);
        different += bytes_of(cache.keys(at), inside) != bytes_of(keys.view(), inside);
        different += bytes_of(cache.values(at), inside) != bytes_of(values.view(), inside);
        different += !cache.keys(at).is_contiguous() || !cache.values(at).is_contiguous();
        different += bytes_of(out_keys.view(), to) != bytes_of(keys.view(), inside, to);
        different += bytes_of(out_values.view(), to) != bytes_of(values.view(), inside, to);
        // The bytes between the rows are what they were.
        kernel::reference{}.copy(detail::as_latent(cache.keys(at)),
                                 detail::as_latent(expected_keys.view()));
        kernel::reference{}.copy(detail::as_latent(cache.values(at)),
                                 detail::as_latent(expected_values.view()));
        different += !(expected_keys == out_keys) || !(expected_values == out_values);
        moved += rows.count();
    }
    CHECK(different == 0);
    CHECK(moved > 4000);
}

TEST_CASE("entries of a feature cache do not touch one another") {
    std::mt19937 generator(2);
    const std::vector<guidance_branch> branches{conditional, image, unconditional};
    constexpr index_t width = 5;
    constexpr index_t tokens = 9;
    feature_cache<> cache({3, 7, branches, tokens, width, dtype::f32});
    std::map<std::pair<index_t, guidance_branch>, std::vector<std::byte>> keys;
    std::map<std::pair<index_t, guidance_branch>, std::vector<std::byte>> values;
    index_t different = 0;
    const auto compare = [&] {
        for (index_t layer = 3; layer < 7; ++layer) {
            for (const guidance_branch branch : branches) {
                const feature_key at{layer, branch};
                different += bytes_of(cache.keys(at), dtype::f32) != keys[{layer, branch}];
                different += bytes_of(cache.values(at), dtype::f32) != values[{layer, branch}];
            }
        }
    };
    compare();
    // Begun, filled and replaced in any order, with any number of rows.
    for (int trial = 0; trial < 300; ++trial) {
        const feature_key at{3 + draw(generator, 4),
                             branches[static_cast<std::size_t>(draw(generator, 3))]};
        const index_t count = draw(generator, 10);
        random_rows k(count, width, dtype::f32, generator);
        random_rows v(count, width, dtype::f32, generator);
        cache.begin(at, feature_rows::of({1, count, 1}));
        cache.append(at, 0, k.view(), v.view());
        keys[{at.layer, at.branch}] = bytes_of(k.view(), dtype::f32);
        values[{at.layer, at.branch}] = bytes_of(v.view(), dtype::f32);
        compare();
    }
    CHECK(different == 0);

    // All of them lie apart, and on their alignment.
    std::set<const std::byte*> begins;
    for (index_t layer = 3; layer < 7; ++layer) {
        for (const guidance_branch branch : branches) {
            cache.begin({layer, branch}, feature_rows::of({1, tokens, 1}));
            begins.insert(cache.keys({layer, branch}).data);
            begins.insert(cache.values({layer, branch}).data);
        }
    }
    CHECK(begins.size() == 24);
    index_t crowded = 0;
    for (auto at = begins.begin(); at != begins.end(); ++at) {
        crowded += reinterpret_cast<std::uintptr_t>(*at) % buffer::alignment != 0;
        if (at != begins.begin()) crowded += *at - *std::prev(at) < tokens * width * 4;
    }
    CHECK(crowded == 0);

    cache.clear();
    for (index_t layer = 3; layer < 7; ++layer) {
        for (const guidance_branch branch : branches) {
            CHECK(cache.rows({layer, branch}) == feature_rows{});
            CHECK(cache.keys({layer, branch}).elements() == 0);
        }
    }
}

TEST_CASE("an entry is empty to another expert, and becomes that of who begins it") {
    std::mt19937 generator(3);
    feature_cache<> cache({0, 1, {conditional}, 4, 3, dtype::f32});
    random_rows k(4, 3, dtype::f32, generator);
    random_rows v(4, 3, dtype::f32, generator);
    const feature_key high{0, conditional, 0};
    const feature_key low{0, conditional, 1};
    cache.begin(high, feature_rows::of({1, 2, 2}));
    cache.append(high, 0, k.view(), v.view());
    CHECK(cache.rows(high).grid == extents3{1, 2, 2});
    CHECK(cache.rows(low) == feature_rows{});
    CHECK(cache.keys(low).elements() == 0);
    CHECK_THROWS_AS(cache.append(low, 0, k.view(), v.view()), usage_error);
    cache.begin(low, feature_rows::of({1, 2, 2}));
    cache.append(low, 0, v.view(), k.view());
    CHECK(bytes_of(cache.keys(low), dtype::f32) == bytes_of(v.view(), dtype::f32));
    CHECK(cache.rows(high) == feature_rows{});
}

TEST_CASE("a feature cache takes what its plan says, once") {
    std::mt19937 generator(4);
    for (const dtype type : computed_types) {
        for (int trial = 0; trial < 30; ++trial) {
            const index_t first = draw(generator, 5);
            const index_t layers = draw(generator, 6);
            std::vector<guidance_branch> branches{conditional, unconditional, image};
            branches.resize(static_cast<std::size_t>(draw(generator, 4)));
            const index_t tokens = draw(generator, 50);
            const index_t width = 1 + draw(generator, 70);
            const feature_cache_plan plan{first, first + layers, branches, tokens, width, type};
            feature_cache_plan one = plan;
            one.last_layer = first + 1;
            counting_resource memory;
            {
                feature_cache<> cache(plan, kernel::host{}, {&memory, memory_space::host});
                CHECK(memory.bytes_in_use() == plan.bytes());
                CHECK(plan.bytes() == layers * one.bytes());
                const index_t taken = memory.allocations();
                for (index_t layer = first; layer < first + layers; ++layer) {
                    for (const guidance_branch branch : branches) {
                        random_rows k(tokens, width, dtype::f32, generator);
                        cache.keep(0, 2);
                        cache.begin({layer, branch}, feature_rows::of({1, tokens, 1}));
                        cache.append({layer, branch}, 0, k.view(), k.view());
                        cache.gather({layer, branch}, 0, k.view(), rows_of(k.view(), 0, tokens));
                    }
                }
                cache.clear();
                const feature_cache<> moved = std::move(cache);
                CHECK(moved.plan() == plan);
                CHECK(memory.allocations() == taken);
                CHECK(memory.peak_bytes() == plan.bytes());
            }
            CHECK(memory.bytes_in_use() == 0);
        }
    }
}

TEST_CASE("plans of feature caches have the same fingerprint exactly if they are equal") {
    const std::vector<feature_cache_plan> plans{{0, 2, {conditional}, 8, 4, dtype::f32},
                                                {1, 2, {conditional}, 8, 4, dtype::f32},
                                                {0, 3, {conditional}, 8, 4, dtype::f32},
                                                {0, 2, {unconditional}, 8, 4, dtype::f32},
                                                {0, 2, {}, 8, 4, dtype::f32},
                                                {0, 2, {conditional, image}, 8, 4, dtype::f32},
                                                {0, 2, {image, conditional}, 8, 4, dtype::f32},
                                                {0, 2, {conditional}, 9, 4, dtype::f32},
                                                {0, 2, {conditional}, 8, 5, dtype::f32},
                                                {0, 2, {conditional}, 8, 4, dtype::bf16}};
    for (const feature_cache_plan& a : plans) {
        for (const feature_cache_plan& b : plans) {
            CHECK((a == b) == (a.fingerprint() == b.fingerprint()));
        }
    }
}

TEST_CASE("what a feature cache was not planned for is refused with value and remedy") {
    const feature_cache_plan plan{2, 4, {conditional, unconditional}, 6, 5, dtype::f32};
    const auto refused = [&](auto&& change, const char* text) {
        feature_cache_plan bad = plan;
        change(bad);
        CAPTURE(text);
        CHECK_THROWS_AS(feature_cache<>(bad), usage_error);
        CHECK_THROWS_WITH(feature_cache<>(bad), ContainsSubstring(text));
    };
    refused([](auto& p) { p.first_layer = 5; },
            "layers [5, 4) was planned; plan it for those of a stage");
    refused([](auto& p) { p.first_layer = -1; }, "layers [-1, 4)");
    refused([](auto& p) { p.branches.push_back(conditional); },
            "the branches conditional, unconditional, conditional; name each once");
    refused([](auto& p) { p.tokens = -1; },
            "a feature cache of -1 tokens and rows of 5 elements was planned; use no fewer");
    refused([](auto& p) { p.width = 0; }, "rows of 0 elements");
    refused([](auto& p) { p.type = dtype::f64; },
            "a feature cache of f64 was planned; use f32, bf16 or f16");
    refused([](auto& p) { p.tokens = p.width = index_t{1} << 40; },
            "has more bytes than can be counted");
    CHECK_THROWS_WITH(
        feature_cache<>(plan, kernel::host{},
                        {std::pmr::get_default_resource(), memory_space::cuda}),
        ContainsSubstring("the memory source is cuda memory, the kernels work on host; "
                          "pass a source for theirs"));

    feature_cache<> cache(plan);
    CHECK_THROWS_WITH(cache.keep(-1, 2), ContainsSubstring("cannot keep 2 latents from -1 on"));
    CHECK_THROWS_WITH(cache.keep(1, -2), ContainsSubstring("cannot keep -2 latents from 1 on"));
    CHECK_THROWS_WITH(cache.rows({4, conditional}),
                      ContainsSubstring("layer 4 has no entry in a feature cache of layers [2, 4); "
                                        "plan it for the layers that are run"));
    CHECK_THROWS_WITH(cache.keys({1, conditional}), ContainsSubstring("layer 1 has no entry"));
    CHECK_THROWS_WITH(
        cache.begin({2, image}, {}),
        ContainsSubstring("the image branch has no entry in a feature cache of conditional, "
                          "unconditional; plan it for the branches of the guidance rule"));
    const feature_key at{2, conditional};
    CHECK_THROWS_WITH(cache.begin(at, feature_rows::of({1, 7, 1})),
                      ContainsSubstring("an entry of 7 rows was begun in a feature cache of 6 "
                                        "tokens; plan it for all that are kept"));
    CHECK_THROWS_WITH(cache.begin(at, {{1, 2, 3}, 4, 7}),
                      ContainsSubstring("rows [4, 7) were to be cached of a grid of 1x2x3 tokens; "
                                        "pass a part of its 6"));
    CHECK_THROWS_WITH(cache.begin(at, {{1, 2, 3}, 4, 3}), ContainsSubstring("rows [4, 3)"));
    CHECK_THROWS_WITH(cache.begin(at, {{1, 2, 3}, -1, 3}), ContainsSubstring("rows [-1, 3)"));

    cache.begin(at, {{1, 3, 4}, 2, 8});
    std::vector<float> numbers(100, 1.0f);
    const auto rows = [&](index_t count, index_t width) {
        return make_view(numbers.data(), std::array{count, width});
    };
    const auto both = [&](index_t row, feature_view k, feature_view v, const char* text) {
        CAPTURE(text);
        CHECK_THROWS_WITH(cache.append(at, row, k, v), ContainsSubstring(text));
        CHECK_THROWS_WITH(cache.gather(at, row, k, v), ContainsSubstring(text));
    };
    both(2, rows(3, 4), rows(3, 4),
         "keys of [3, 4] and values of [3, 4] came to a feature cache of rows of 5 elements; pass "
         "as many of both, of that width");
    both(2, rows(3, 5), rows(2, 5), "keys of [3, 5] and values of [2, 5]");
    both(6, rows(3, 5), rows(3, 5),
         "rows [6, 9) are not among the rows [2, 8) of the entry; begin it with all that are to "
         "come");
    both(1, rows(3, 5), rows(3, 5), "rows [1, 4) are not among");
    auto integers = rows(3, 5);
    integers.type = dtype::i32;
    both(2, integers, rows(3, 5), "i32; use f32, bf16 or f16");
    auto on_device = rows(3, 5);
    on_device.space = memory_space::cuda;
    both(2, rows(3, 5), on_device, "cuda memory");
    CHECK_THROWS_WITH(cache.append({3, conditional}, 0, rows(1, 5), rows(1, 5)),
                      ContainsSubstring("rows [0, 1) are not among the rows [0, 0)"));
}
