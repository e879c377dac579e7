// SPDX-License-Identifier: Apache-2.0
// What the Wan transformer promises beyond its recorded outputs.
#include "wan_support.hpp"

#include <support/catch.hpp>

#include <barrier>
#include <exception>
#include <thread>

using namespace latpar;

static_assert(denoiser<wan::transformer<>>);
static_assert(staged_denoiser<wan::transformer<>>);

namespace {

constexpr std::array<index_t, 5> large{1, 4, 7, 16, 18};  // 504 tokens: six blocks of rows

}  // namespace

TEST_CASE("the result does not depend on the number of threads") {
    const latent z = filled_latent(large, 1);
    const call at(z, 321);
    std::vector<float> first;
    for (const int threads : {1, 2, 3}) {
        wan::transformer model(small_model(), executor_of(threads));
        set_texts(model);
        const auto found = predicted(model, z, at.info);
        if (first.empty()) first = found;
        CHECK(identical(found, first));
        CHECK(identical(predicted(model, z, at.info), first));
    }
}

TEST_CASE("the kernels of all instruction sets agree") {
    const auto names = wan::available_kernels();
    REQUIRE(names.at(0) == "baseline");
    CHECK(wan::find_kernels().name == names.back());
    const latent z = filled_latent(large, 1);
    const call at(z, 321);
    std::vector<float> first;
    for (const std::string_view name : names) {
        INFO(name);
        auto exec = executor_of(2, name);
        CHECK(exec->kernels().name == name);
        wan::transformer model(small_model(), exec);
        set_texts(model);
        const auto found = predicted(model, z, at.info);
        if (first.empty()) first = found;
        CHECK(relative_l2(found, first) < 1e-5);
    }
    CHECK_THROWS_WITH(executor_of(1, "mmx"), ContainsSubstring("baseline"));
    CHECK_THROWS_AS(executor_of(-1), usage_error);
}

TEST_CASE("memory is linear in the tokens and taken once") {
    std::vector<index_t> peaks;
    for (const index_t frames : {8, 16, 32}) {
        counting_resource counter;
        wan::transformer model(small_model(), executor_of(2, "auto", {&counter}));
        set_texts(model);
        const latent z = filled_latent({1, 4, frames, 16, 16}, 1);
        const call at(z, 321);
        static_cast<void>(predicted(model, z, at.info));
        const index_t allocations = counter.allocations();
        static_cast<void>(predicted(model, z, at.info));
        CHECK(counter.allocations() == allocations);
        peaks.push_back(counter.peak_bytes());
    }
    CHECK(peaks[1] <= 2.1 * peaks[0]);
    CHECK(peaks[2] <= 2.1 * peaks[1]);
    CHECK(peaks[2] - peaks[1] == 2 * (peaks[1] - peaks[0]));
}

TEST_CASE("stages give what the whole gives, wherever it is split") {
    wan::transformer model(small_model(), executor_of(2));
    set_texts(model);
    const latent z = filled_latent({2, 4, 3, 12, 18}, 1);
    call at(z, 700);
    at.samples[1].branch = guidance_branch::unconditional;
    at.samples[1].timestep = 40;
    const auto whole = predicted(model, z, at.info);
    for (index_t first = 0; first <= model.layer_count(); ++first) {
        for (index_t second = first; second <= model.layer_count(); ++second) {
            auto context = model.prepare(at.info, {});
            tensor<3> hidden(model.signature(2, at.info.window.extent).at(0).extents);
            const std::array views{hidden.view()};
            latent prediction({2, 3, 3, 12, 18});
            model.embed(z.view(), context, views, {});
            model.layers(0, first, context, views, nullptr, {});
            model.layers(first, second, context, views, nullptr, {});
            model.layers(second, model.layer_count(), context, views, nullptr, {});
            model.head(context, views, prediction.view(), {});
            CHECK(identical(prediction.elements<float>(), whole));
        }
    }
}

TEST_CASE("a batch gives what its samples give") {
    wan::transformer model(small_model(), executor_of(2));
    set_texts(model);
    CHECK(max_batch_of(model) > 1);
    const latent z = filled_latent({2, 4, 2, 8, 6}, 1);
    call both(z, 700);
    both.samples[1].branch = guidance_branch::unconditional;
    const auto together = predicted(model, z, both.info);
    const std::size_t half = together.size() / 2;
    for (std::size_t i = 0; i < 2; ++i) {
        latent one({1, 4, 2, 8, 6});
        std::ranges::copy(z.elements<float>().subspan(i * 4 * 96, 4 * 96),
                          one.elements<float>().begin());
        call at(one, 700);
        at.samples[0].branch = both.samples[i].branch;
        CHECK(
            identical(predicted(model, one, at.info), std::span(together).subspan(i * half, half)));
    }
    CHECK(relative_l2(std::span(together).first(half), std::span(together).last(half)) > 0.01);
}

TEST_CASE("latents may be strided and of low precision") {
    wan::transformer model(small_model(), executor_of(1));
    set_texts(model);
    latent wide({1, 4, 3, 8, 10}, dtype::f32);
    fill(wide.elements<float>(), 3);
    for (float& value : wide.elements<float>()) value = to_float(to_bfloat16(value));
    const box inside{{1, 2, 4}, {2, 4, 6}};
    latent dense({1, 4, 2, 4, 6});
    latent rounded({1, 4, 2, 4, 6}, dtype::bf16);
    const auto part = subview(latent_view(wide.view()), inside);
    index_t next = 0;
    for (index_t c = 0; c < 4; ++c) {
        for (index_t t = 0; t < 2; ++t) {
            for (index_t h = 0; h < 4; ++h) {
                for (index_t w = 0; w < 6; ++w, ++next) {
                    const float value = part.as<float>()[part.offset({0, c, t, h, w})];
                    dense.elements<float>()[static_cast<std::size_t>(next)] = value;
                    rounded.elements<bfloat16>()[static_cast<std::size_t>(next)] =
                        to_bfloat16(value);
                }
            }
        }
    }
    const call at(dense, 500);
    const auto expected = predicted(model, dense, at.info);
    CHECK(identical(predicted(model, rounded, at.info), expected));
    // Into a strided view of a larger prediction; what lies around it stays.
    latent canvas({1, 3, 3, 8, 10});
    std::ranges::fill(canvas.elements<float>(), 9.0f);
    const auto target = subview(canvas.view(), inside);
    model(part, at.info, target, {});
    double distance = 0;
    next = 0;
    for (index_t c = 0; c < 3; ++c) {
        for (index_t t = 0; t < 2; ++t) {
            for (index_t h = 0; h < 4; ++h) {
                for (index_t w = 0; w < 6; ++w, ++next) {
                    distance += std::abs(target.as<float>()[target.offset({0, c, t, h, w})] -
                                         expected[static_cast<std::size_t>(next)]);
                }
            }
        }
    }
    CHECK(distance == 0);
    CHECK(std::ranges::count(canvas.elements<float>(), 9.0f) == 3 * (240 - 48));
}

TEST_CASE("conditions are channels behind those of the latent") {
    wan::transformer model(small_model(), executor_of(1));
    set_texts(model);
    const latent all = filled_latent({1, 4, 2, 4, 6}, 1);
    const call whole(all, 500);
    auto front = all.view();
    front.extents[1] = 1;
    auto back = all.view();
    back.data += back.strides[1] * 4;
    back.extents[1] = 3;
    const std::array<const_latent_view, 1> conditions{back};
    call split(all, 500);
    split.info.conditions = conditions;
    latent prediction({1, 3, 2, 4, 6});
    model(front, split.info, prediction.view(), {});
    CHECK(identical(prediction.elements<float>(), predicted(model, all, whole.info)));
    CHECK_THROWS_WITH(model(front, whole.info, prediction.view(), {}),
                      ContainsSubstring("takes 4 channels"));
}

TEST_CASE("every frame may have a timestep of its own") {
    wan::transformer model(small_model(), executor_of(2));
    set_texts(model);
    const latent z = filled_latent({1, 4, 3, 8, 30}, 1);  // 60 tokens a frame: blocks cross frames
    call at(z, 250);
    const auto expected = predicted(model, z, at.info);
    const std::vector<float> same(3, 250.0f);
    at.samples[0].timestep = 999;
    at.samples[0].frame_timesteps = same;
    CHECK(relative_l2(predicted(model, z, at.info), expected) < 1e-6);
    const std::vector<float> mixed{250, 800, 20};
    at.samples[0].frame_timesteps = mixed;
    CHECK(relative_l2(predicted(model, z, at.info), expected) > 0.01);
    const std::vector<float> few(2, 250.0f);
    at.samples[0].frame_timesteps = few;
    CHECK_THROWS_WITH(predicted(model, z, at.info), ContainsSubstring("2 frame timesteps"));
}

namespace {

// Remembers the queries of the first layer.
struct spy {
    wan::local_attention local;
    std::vector<float>* queries;
    void operator()(wan::const_heads_view q, wan::const_heads_view k, wan::const_heads_view v,
                    wan::heads_view out, wan::lse_view lse, stream_ref stream) {
        if (queries->empty()) queries->assign(q.as<float>(), q.as<float>() + q.elements());
        local(q, k, v, out, lse, stream);
    }
};

struct seen {
    std::vector<float> queries;
    std::vector<float> prediction;
};

seen look(const latent& z, const step_info& info, wan::positions where) {
    seen out;
    auto exec = executor_of(1);
    wan::transformer<spy> model(small_model(), exec, spy{wan::local_attention(exec), &out.queries},
                                where);
    set_texts(model);
    out.prediction = predicted(model, z, info);
    return out;
}

}  // namespace

TEST_CASE("positions are the window's own or those within the global latent") {
    const latent whole = filled_latent({1, 4, 6, 8, 12}, 1);
    const call everywhere(whole, 500);
    const seen global_whole = look(whole, everywhere.info, wan::positions::global);
    const seen local_whole = look(whole, everywhere.info, wan::positions::local);
    CHECK(identical(global_whole.queries, local_whole.queries));
    CHECK(identical(global_whole.prediction, local_whole.prediction));

    for (const extents3 origin : {extents3{0, 0, 0}, extents3{2, 4, 6}, extents3{0, 0, 6}}) {
        INFO(origin[0] << ' ' << origin[1] << ' ' << origin[2]);
        const box region{origin, {3, 4, 6}};
        latent part({1, 4, 3, 4, 6});
        const auto from = subview(const_latent_view(whole.view()), region);
        std::vector<float> expected;  // the queries of the whole at the tokens of the part
        for (index_t t = 0; t < 3; ++t) {
            for (index_t h = 0; h < 2; ++h) {
                for (index_t w = 0; w < 3; ++w) {
                    const index_t token =
                        ((origin[0] + t) * 4 + origin[1] / 2 + h) * 6 + origin[2] / 2 + w;
                    const auto row = global_whole.queries.begin() + token * 28;
                    expected.insert(expected.end(), row, row + 28);
                }
            }
        }
        index_t next = 0;
        for (index_t c = 0; c < 4; ++c) {
            for (index_t t = 0; t < 3; ++t) {
                for (index_t h = 0; h < 4; ++h) {
                    for (index_t w = 0; w < 6; ++w, ++next) {
                        part.elements<float>()[static_cast<std::size_t>(next)] =
                            from.as<float>()[from.offset({0, c, t, h, w})];
                    }
                }
            }
        }
        call at(part, 500, origin);
        at.info.global = {6, 8, 12};
        const seen global_part = look(part, at.info, wan::positions::global);
        const seen local_part = look(part, at.info, wan::positions::local);
        CHECK(relative_l2(global_part.queries, expected) < 1e-6);
        if (origin == extents3{}) {
            CHECK(identical(global_part.queries, local_part.queries));
            CHECK(identical(global_part.prediction, local_part.prediction));
        } else {
            CHECK(relative_l2(local_part.queries, expected) > 0.1);
            // Rotary attention sees differences of positions only: a shift of all changes nothing.
            CHECK(relative_l2(global_part.prediction, local_part.prediction) < 1e-5);
        }
    }
    const latent small = filled_latent({1, 4, 2, 4, 6}, 1);
    const call odd(small, 500, {0, 1, 0});
    CHECK_THROWS_WITH(look(small, odd.info, wan::positions::global),
                      ContainsSubstring("whole patch along H"));
    CHECK_NOTHROW(look(small, odd.info, wan::positions::local));
    const call far(small, 500, {31, 0, 0});
    CHECK_THROWS_WITH(look(small, far.info, wan::positions::global),
                      ContainsSubstring("rope_max_seq_len of 32"));
}

namespace {

// A window of the parts one after another, embedded and sent through layer 0.
std::vector<float> first_layer(wan::transformer<>& model, const std::vector<const latent*>& parts,
                               const std::vector<float>& timesteps, wan::feature_cache* cache) {
    index_t frames = 0;
    for (const latent* part : parts) frames += part->view().extents[2];
    latent z({1, 4, frames, 6, 6});
    index_t at = 0;
    for (const latent* part : parts) {
        const index_t count = part->view().extents[2] * 36;
        for (index_t c = 0; c < 4; ++c) {
            std::copy_n(part->elements<float>().data() + c * count, count,
                        z.elements<float>().data() + c * frames * 36 + at);
        }
        at += count;
    }
    call info(z, 0);
    info.samples[0].frame_timesteps = timesteps;
    auto context = model.prepare(info.info, {});
    tensor<3> hidden(model.signature(1, info.info.window.extent).at(0).extents);
    const std::array views{hidden.view()};
    model.embed(z.view(), context, views, {});
    model.layers(0, 1, context, views, cache, {});
    const auto rows = hidden.elements<float>();
    return {rows.begin(), rows.end()};
}

}  // namespace

TEST_CASE("a feature cache lends one window's latents to the next") {
    wan::transformer model(small_model(), executor_of(2));
    set_texts(model);
    const latent front = filled_latent({1, 4, 1, 6, 6}, 1);
    const latent kept = filled_latent({1, 4, 2, 6, 6}, 2);
    const latent rest = filled_latent({1, 4, 1, 6, 6}, 3);
    const latent block = filled_latent({1, 4, 3, 6, 6}, 4);
    const std::size_t own = 3 * 9 * 28;
    const auto alone = first_layer(model, {&block}, {200, 200, 200}, nullptr);
    const auto both = first_layer(model, {&block, &kept}, {200, 200, 200, 800, 800}, nullptr);

    const std::vector branches{guidance_branch::conditional};
    const auto plan = model.plan_cache(0, 1, branches, 2, {4, 6, 6});
    CHECK(plan == feature_cache_plan{0, 1, branches, 2 * 9, 28, dtype::f32});
    wan::feature_cache cache(plan);
    cache.keep(1, 2);
    const auto noisy = first_layer(model, {&front, &kept, &rest}, {800, 800, 800, 800}, &cache);
    CHECK(identical(noisy,
                    first_layer(model, {&front, &kept, &rest}, {800, 800, 800, 800}, nullptr)));
    cache.keep(0, 0);
    const auto lent = first_layer(model, {&block}, {200, 200, 200}, &cache);
    CHECK(relative_l2(lent, std::span(both).first(own)) < 1e-6);
    CHECK(relative_l2(lent, alone) > 1e-3);
    // That window kept nothing, so the next borrows nothing.
    CHECK(identical(first_layer(model, {&block}, {200, 200, 200}, &cache), alone));

    cache.keep(1, 2);
    static_cast<void>(first_layer(model, {&front, &kept, &rest}, {800, 800, 800, 800}, &cache));
    cache.clear();
    CHECK(identical(first_layer(model, {&block}, {200, 200, 200}, &cache), alone));

    cache.keep(2, 2);
    CHECK_THROWS_WITH(first_layer(model, {&block}, {200, 200, 200}, &cache),
                      ContainsSubstring("[2, 4)"));
    CHECK_THROWS_AS(cache.keep(-1, 1), usage_error);
    cache.keep(0, 3);
    CHECK_THROWS_WITH(first_layer(model, {&block}, {200, 200, 200}, &cache),
                      ContainsSubstring("an entry of 27 rows was begun in a feature cache of 18"));
    CHECK_THROWS_WITH(model.plan_cache(0, 1, branches, 2, {4, 5, 6}), ContainsSubstring("5x6"));

    // Half the memory, and nearly the same.
    feature_cache_plan half = plan;
    half.type = dtype::bf16;
    CHECK(2 * half.bytes() == plan.bytes());
    wan::feature_cache rounded(half);
    rounded.keep(1, 2);
    static_cast<void>(first_layer(model, {&front, &kept, &rest}, {800, 800, 800, 800}, &rounded));
    rounded.keep(0, 0);
    const auto lent_rounded = first_layer(model, {&block}, {200, 200, 200}, &rounded);
    CHECK(relative_l2(lent_rounded, lent) < 1e-2);
    CHECK_FALSE(identical(lent_rounded, lent));
}

TEST_CASE("a feature cache keeps the guidance branches apart") {
    wan::transformer model(small_model(), executor_of(1));
    set_texts(model);
    const latent z = filled_latent({1, 4, 2, 6, 6}, 1);
    call conditional(z, 100);
    call unconditional(z, 100);
    unconditional.samples[0].branch = guidance_branch::unconditional;
    const auto run = [&](const call& at, wan::feature_cache* cache) {
        auto context = model.prepare(at.info, {});
        tensor<3> hidden(model.signature(1, at.info.window.extent).at(0).extents);
        const std::array views{hidden.view()};
        model.embed(z.view(), context, views, {});
        model.layers(0, 3, context, views, cache, {});
        const auto rows = hidden.elements<float>();
        return std::vector<float>(rows.begin(), rows.end());
    };
    const std::vector branches{guidance_branch::conditional, guidance_branch::unconditional};
    wan::feature_cache cache(model.plan_cache(0, 3, branches, 1, {2, 6, 6}));
    cache.keep(0, 1);
    const latent two = filled_latent({2, 4, 2, 6, 6}, 1);
    const call twice(two, 100);
    auto context = model.prepare(twice.info, {});
    tensor<3> hidden({2, 18, 28});
    const std::array views{hidden.view()};
    CHECK_THROWS_WITH(model.layers(0, 3, context, views, &cache, {}),
                      ContainsSubstring("one sample of the conditional branch"));
    const auto alone = run(unconditional, nullptr);
    static_cast<void>(run(conditional, &cache));
    CHECK(identical(run(unconditional, &cache), alone));
    CHECK_FALSE(identical(run(unconditional, &cache), alone));
}

namespace {

// What two ranks share in memory: each holds a part of the tokens and sees the other's keys.
struct meeting {
    explicit meeting(int ranks) : barrier(ranks) {}
    std::barrier<> barrier;
    std::vector<float> keys, values, rows;
};

struct shared_attention {
    wan::local_attention local;
    meeting* place;
    index_t rank;
    index_t tokens = 0;

    [[nodiscard]] std::pair<index_t, index_t> token_range(index_t all) const {
        const index_t cut = all / 3;
        return rank == 0 ? std::pair(index_t{0}, cut) : std::pair(cut, all);
    }
    void operator()(wan::const_heads_view q, wan::const_heads_view k, wan::const_heads_view v,
                    wan::heads_view out, wan::lse_view lse, stream_ref stream) {
        const index_t row = k.strides[0];
        const index_t begin = token_range(tokens).first * row;
        std::copy_n(k.as<float>(), k.elements(), place->keys.begin() + begin);
        std::copy_n(v.as<float>(), v.elements(), place->values.begin() + begin);
        place->barrier.arrive_and_wait();
        const std::array<index_t, 3> all{tokens, k.extents[1], k.extents[2]};
        const auto& keys = place->keys;
        const auto& values = place->values;
        local(q, make_view(keys.data(), all), make_view(values.data(), all), out, lse, stream);
        place->barrier.arrive_and_wait();
    }
    void gather(basic_view<std::byte, 2> rows, stream_ref) {
        const auto [begin, end] = token_range(rows.extents[0]);
        float* const own = rows.as<float>();
        const index_t columns = rows.extents[1];
        std::copy(own + begin * columns, own + end * columns,
                  place->rows.begin() + begin * columns);
        place->barrier.arrive_and_wait();
        std::copy_n(place->rows.begin(), rows.elements(), own);
        place->barrier.arrive_and_wait();
    }
};

}  // namespace

TEST_CASE("an attention may spread the tokens over ranks that share the weights") {
    const latent z = filled_latent(large, 1);
    call at(z, 321);
    const std::vector<float> timesteps{10, 900, 300, 700, 50, 500, 999};
    at.samples[0].frame_timesteps = timesteps;
    wan::transformer whole(small_model(), executor_of(1));
    set_texts(whole);
    const auto expected = predicted(whole, z, at.info);

    const index_t tokens = 504;
    meeting place(2);
    place.keys.resize(tokens * 28);
    place.values.resize(tokens * 28);
    place.rows.resize(tokens * 12);
    std::array<std::vector<float>, 2> found;
    std::array<std::string, 2> failures;
    {
        std::vector<std::jthread> ranks;
        for (index_t rank = 0; rank < 2; ++rank) {
            ranks.emplace_back([&, rank] {
                const auto slot = static_cast<std::size_t>(rank);
                try {
                    auto exec = executor_of(1);
                    wan::transformer<shared_attention> model(
                        small_model(), exec,
                        shared_attention{wan::local_attention(exec), &place, rank, tokens});
                    set_texts(model);
                    const auto signature = model.signature(1, at.info.window.extent);
                    if (signature.at(0).extents[1] != (rank == 0 ? 168 : 336)) {
                        failures[slot] = "the signature does not follow the token range";
                    }
                    found[slot] = predicted(model, z, at.info);
                } catch (const std::exception& problem) {
                    failures[slot] = problem.what();
                    place.barrier.arrive_and_drop();
                }
            });
        }
    }
    for (std::size_t rank = 0; rank < 2; ++rank) {
        CHECK(failures[rank].empty());
        REQUIRE(found[rank].size() == expected.size());
        CHECK(relative_l2(found[rank], expected) < 1e-5);
    }
    CHECK(identical(found[0], found[1]));
}

TEST_CASE("calls that cannot be served are refused") {
    wan::transformer model(small_model(), executor_of(1));
    const latent z = filled_latent({1, 4, 2, 6, 6}, 1);
    const call at(z, 100);
    CHECK_THROWS_WITH(predicted(model, z, at.info), ContainsSubstring("conditional branch"));
    CHECK_THROWS_WITH(model.embedded_text(guidance_branch::image), ContainsSubstring("image"));
    CHECK_THROWS_WITH(model.set_text(guidance_branch::conditional, filled(12, 0)),
                      ContainsSubstring("rows of 8"));
    CHECK_THROWS_AS(model.set_text(guidance_branch::conditional, {}), usage_error);
    set_texts(model);
    CHECK_NOTHROW(predicted(model, z, at.info));

    const latent odd = filled_latent({1, 4, 2, 6, 5}, 1);
    const call odd_call(odd, 100);
    CHECK_THROWS_WITH(predicted(model, odd, odd_call.info), ContainsSubstring("2x6x5"));
    const latent two = filled_latent({2, 4, 2, 6, 6}, 1);
    CHECK_THROWS_WITH(predicted(model, two, at.info), ContainsSubstring("batch 2"));
    const latent other = filled_latent({1, 4, 2, 6, 8}, 1);
    CHECK_THROWS_AS(predicted(model, other, at.info), usage_error);
    const latent tall = filled_latent({1, 4, 33, 2, 2}, 1);
    const call tall_call(tall, 100);
    CHECK_THROWS_WITH(predicted(model, tall, tall_call.info), ContainsSubstring("position 33"));
    const latent channels = filled_latent({1, 5, 2, 6, 6}, 1);
    CHECK_THROWS_WITH(predicted(model, channels, at.info), ContainsSubstring("got 5"));
    latent wrong({1, 4, 2, 6, 6});
    CHECK_THROWS_WITH(model(z.view(), at.info, wrong.view(), {}), ContainsSubstring("3 channels"));
    const latent integers({1, 4, 2, 6, 6}, dtype::i32);
    CHECK_THROWS_WITH(predicted(model, integers, at.info), ContainsSubstring("i32"));

    auto context = model.prepare(at.info, {});
    tensor<3> hidden({1, 17, 28});
    const std::array views{hidden.view()};
    CHECK_THROWS_WITH(model.embed(z.view(), context, views, {}), ContainsSubstring("[1,18,28]"));
    CHECK_THROWS_AS(model.embed(z.view(), context, {}, {}), usage_error);
}
