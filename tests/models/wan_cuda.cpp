// SPDX-License-Identifier: Apache-2.0
// The Wan transformer on a GPU: against recorded outputs, against the host's, and against itself.
#include "wan_cuda_support.hpp"

#include <support/catch.hpp>
#include <wan/cuda/memory_plan.hpp>

#include <algorithm>
#include <functional>

using namespace latpar;

static_assert(denoiser<wan::cuda::transformer<>>);
static_assert(staged_denoiser<wan::cuda::transformer<>>);

TEST_CASE("every recorded point is met on a GPU") {
    device_lab lab;
    const auto recorded = safetensors_file::open(reference_file("wan_tiny_io.safetensors"));
    const auto tiny = wan::load_weights(reference_file("wan_tiny.safetensors"));
    for (const dtype type : {dtype::f32, dtype::bf16}) {
        const double limit = type == dtype::f32 ? 1e-5 : 2e-2;
        auto model = device_model(lab, *tiny, type);
        for (const std::string number : {"0.", "1.", "2."}) {
            INFO(name_of(type) << ", input " << number);
            const auto distance = [&](std::span<const float> found, const std::string& name) {
                const double out = relative_l2(found, to_float32(recorded.at(number + name)));
                UNSCOPED_INFO(name << " " << out);
                return out;
            };
            const latent z = recorded_latent(recorded, number + "latent");
            const auto timestep = recorded.at(number + "timestep").values<float>().at(0);
            model.set_text(guidance_branch::conditional, to_float32(recorded.at(number + "text")));
            const call info(z, timestep);

            auto context = model.prepare(info.info, lab.stream());
            const index_t w = tiny->config.width();
            CHECK(distance(model.embedded_text(guidance_branch::conditional), "text_embedded") <
                  limit);
            CHECK(distance(downloaded(lab, context.samples[0].time, w), "temb") < limit);
            CHECK(distance(downloaded(lab, context.samples[0].time_projection, 6 * w),
                           "timestep_proj") < limit);

            const auto signature = model.signature(1, info.info.window.extent);
            REQUIRE(signature.size() == 1);
            CHECK(signature[0].type == dtype::f32);
            tensor<3> hidden(signature[0].extents, dtype::f32, lab.memory());
            const std::array views{hidden.view()};
            const latent there = uploaded(lab, z);
            model.embed(there.view(), context, views, lab.stream());
            CHECK(distance(downloaded(lab, hidden), "after_patch") < limit);
            model.layers(0, 1, context, views, nullptr, lab.stream());
            CHECK(distance(downloaded(lab, hidden), "after_block0") < limit);
            CHECK(distance(predicted(lab, model, z, info.info), "output") < limit);
        }
    }
}

TEST_CASE("the bundled model predicts on a GPU what its recording says") {
    device_lab lab;
    const std::filesystem::path folder = LATPAR_MOVING_SHAPES_DIR;
    const auto recording = safetensors_file::open(folder / "sample_fixture.safetensors");
    const auto bundled = wan::load_weights(folder / "moving_shapes.safetensors");
    const latent noise = recorded_latent(recording, "noise");
    for (const dtype type : {dtype::f32, dtype::bf16}) {
        auto model = device_model(lab, *bundled, type);
        model.set_text(guidance_branch::conditional, to_float32(recording.at("text_conditional")));
        const call info(noise, to_float32(recording.at("timestep")).front());
        CAPTURE(name_of(type));
        CHECK(relative_l2(predicted(lab, model, noise, info.info),
                          to_float32(recording.at("prediction_conditional"))) <
              (type == dtype::f32 ? 1e-5 : 2e-2));
    }
}

TEST_CASE("a GPU predicts what the host does, whatever the window") {
    device_lab lab;
    wan::transformer<> host(small_model(), executor_of(2));
    set_texts(host);
    for (const dtype type : {dtype::f32, dtype::bf16}) {
        auto model = device_model(lab, *small_model(), type);
        set_texts(model);
        for (const extents3 window :
             {extents3{1, 2, 2}, extents3{3, 12, 18}, extents3{7, 16, 18}, extents3{2, 6, 10}}) {
            for (const bool by_frame : {false, true}) {
                const latent z = filled_latent({2, 4, window[0], window[1], window[2]}, 1);
                call at(z, 321);
                at.samples[1].branch = guidance_branch::unconditional;
                at.samples[1].timestep = 40;
                const std::vector<float> times{10, 900, 300, 700, 50, 500, 999};
                if (by_frame) {
                    at.samples[1].frame_timesteps =
                        std::span(times).first(static_cast<std::size_t>(window[0]));
                }
                const auto expected = predicted(host, z, at.info);
                CAPTURE(name_of(type), window[0], window[1], window[2], by_frame);
                CHECK(relative_l2(predicted(lab, model, z, at.info), expected) <
                      (type == dtype::f32 ? 1e-5 : 2e-2));
            }
        }
    }
}

TEST_CASE("on a GPU latents may be strided, of any type, and in several parts") {
    device_lab lab;
    wan::transformer<> host(small_model(), executor_of(2));
    set_texts(host);
    auto model = device_model(lab, *small_model(), dtype::f32);
    set_texts(model);
    for (const dtype type : {dtype::f32, dtype::bf16, dtype::f16}) {
        CAPTURE(name_of(type));
        // One channel of the latent, three of a condition, within larger ones.
        latent wide({1, 1, 3, 8, 10}, type);
        latent given({1, 3, 3, 8, 10}, type);
        for (latent* to : {&wide, &given}) {
            const latent values = filled_latent(to->view().extents, to == &wide ? 3.0f : 4.0f);
            kernel::host{}.copy(values.view(), to->view());
        }
        const box inside{{1, 2, 4}, {2, 4, 6}};
        const std::array<const_latent_view, 1> conditions{
            subview(const_latent_view(given.view()), inside)};
        latent like({1, 4, 2, 4, 6});
        call at(like, 500);
        at.info.conditions = conditions;
        latent expected({1, 3, 3, 8, 10}, type);
        std::memset(expected.view().data, 0x11, static_cast<std::size_t>(expected.bytes()));
        latent found({1, 3, 3, 8, 10}, type);
        std::memset(found.view().data, 0x11, static_cast<std::size_t>(found.bytes()));
        host(subview(const_latent_view(wide.view()), inside), at.info,
             subview(expected.view(), inside), {});

        const latent wide_there = uploaded(lab, wide);
        const latent given_there = uploaded(lab, given);
        latent found_there = uploaded(lab, found);
        const std::array<const_latent_view, 1> conditions_there{
            subview(const_latent_view(given_there.view()), inside)};
        at.info.conditions = conditions_there;
        model(subview(const_latent_view(wide_there.view()), inside), at.info,
              subview(found_there.view(), inside), lab.stream());
        lab.download({found.view().data, static_cast<std::size_t>(found.bytes())},
                     found_there.view().data);
        latent a({1, 3, 3, 8, 10});
        latent b({1, 3, 3, 8, 10});
        kernel::host{}.copy(found.view(), a.view());
        kernel::host{}.copy(expected.view(), b.view());
        // What lies around it stays; within it, results that round to either side.
        const double limit = type == dtype::f32 ? 1e-5 : type == dtype::f16 ? 1e-3 : 1e-2;
        CHECK(relative_l2(a, b) < limit);
        const latent_view whole = found.view();
        const std::byte mark{0x11};
        for (index_t t = 0; t < 3; ++t) {
            for (index_t w = 0; w < 10; ++w) {
                if (t > 0 && w >= 4) continue;
                CHECK(whole.data[whole.offset({0, 2, t, 3, w}) * size_of(type)] == mark);
            }
        }
    }
}

TEST_CASE("on a GPU positions may be those within the global latent") {
    device_lab lab;
    const latent z = filled_latent({1, 4, 3, 4, 6}, 2);
    call at(z, 500, {2, 4, 6});
    at.info.global = {6, 8, 12};
    wan::transformer<> host(small_model(), executor_of(1), wan::positions::global);
    set_texts(host);
    auto model = device_model(lab, *small_model(), dtype::f32, wan::positions::global);
    set_texts(model);
    // A shift of all positions changes the keys, not the prediction: see both.
    CHECK(relative_l2(predicted(lab, model, z, at.info), predicted(host, z, at.info)) < 1e-5);
    call far(z, 500, {31, 0, 0});
    CHECK_THROWS_WITH(predicted(lab, model, z, far.info), ContainsSubstring("rope_max_seq_len"));
}

TEST_CASE("on a GPU stages give what the whole gives, wherever it is split") {
    device_lab lab;
    for (const dtype type : {dtype::f32, dtype::bf16}) {
        auto model = device_model(lab, *small_model(), type);
        set_texts(model);
        const latent z = filled_latent({2, 4, 3, 12, 18}, 1);
        call at(z, 700);
        at.samples[1].branch = guidance_branch::unconditional;
        at.samples[1].timestep = 40;
        const auto whole = predicted(lab, model, z, at.info);
        const latent there = uploaded(lab, z);
        for (index_t first = 0; first <= model.layer_count(); ++first) {
            auto context = model.prepare(at.info, lab.stream());
            tensor<3> hidden(model.signature(2, at.info.window.extent).at(0).extents, dtype::f32,
                             lab.memory());
            const std::array views{hidden.view()};
            latent prediction({2, 3, 3, 12, 18}, dtype::f32, lab.memory());
            model.embed(there.view(), context, views, lab.stream());
            model.layers(0, first, context, views, nullptr, lab.stream());
            // Another context at the same time leaves this one alone.
            call other(z, 3);
            static_cast<void>(model.prepare(other.info, lab.stream()));
            const auto alive = model.prepare(other.info, lab.stream());
            model.layers(first, model.layer_count(), context, views, nullptr, lab.stream());
            model.head(context, views, prediction.view(), lab.stream());
            CHECK(identical(downloaded(lab, prediction), whole));
        }
    }
}

namespace {

/// Both branches in windows that keep some of their frames, a few layers at a time.
template <class Model, class Cache>
std::vector<std::vector<float>> lent_windows(
    Model& model, Cache* cache, memory_source memory, stream_ref stream,
    const std::function<latent(const latent&)>& to_model,
    const std::function<std::vector<float>(const latent&)>& from_model) {
    struct window {
        index_t frames, first_kept, kept;
    };
    std::vector<std::vector<float>> out;
    for (const window& at :
         {window{5, 0, 2}, window{5, 2, 2}, window{4, 1, 1}, window{5, 0, 0}, window{4, 0, 2}}) {
        const latent z = filled_latent({2, 4, at.frames, 6, 4}, static_cast<float>(out.size()));
        call info(z, 900 - 100 * static_cast<double>(out.size()));
        info.samples[1].branch = guidance_branch::unconditional;
        if (cache) cache->keep(at.first_kept, at.kept);
        const latent there = to_model(z);
        auto context = model.prepare(info.info, stream);
        tensor<3> rows(model.signature(2, info.info.window.extent)[0].extents, dtype::f32, memory);
        const std::array hidden{rows.view()};
        model.embed(there.view(), context, hidden, stream);
        model.layers(0, 1, context, hidden, cache, stream);
        model.layers(1, 3, context, hidden, cache, stream);
        latent prediction({2, 3, at.frames, 6, 4}, dtype::f32, memory);
        model.head(context, hidden, prediction.view(), stream);
        out.push_back(from_model(prediction));
    }
    return out;
}

}  // namespace

TEST_CASE("a feature cache on a GPU lends what the host's does") {
    device_lab lab;
    const std::vector branches{guidance_branch::conditional, guidance_branch::unconditional};
    const auto keep_here = [](const latent& z) {
        latent out(z.view().extents);
        kernel::host{}.copy(z.view(), out.view());
        return out;
    };
    const auto read_here = [](const latent& z) {
        const auto values = z.elements<float>();
        return std::vector<float>(values.begin(), values.end());
    };
    wan::transformer<> host(small_model(), executor_of(2));
    set_texts(host);
    wan::feature_cache host_cache(host.plan_cache(0, 3, branches, 2, {5, 6, 4}));
    const auto expected = lent_windows(host, &host_cache, {}, {}, keep_here, read_here);
    const auto alone =
        lent_windows(host, static_cast<wan::feature_cache*>(nullptr), {}, {}, keep_here, read_here);

    for (const dtype type : {dtype::f32, dtype::bf16}) {
        CAPTURE(name_of(type));
        auto model = device_model(lab, *small_model(), type);
        set_texts(model);
        const auto plan = model.plan_cache(0, 3, branches, 2, {5, 6, 4});
        CHECK(plan.type == type);
        wan::cuda::feature_cache cache(plan, {}, lab.memory());
        const auto to_model = [&](const latent& z) { return uploaded(lab, z); };
        const auto from_model = [&](const latent& z) { return downloaded(lab, z); };
        const auto found =
            lent_windows(model, &cache, lab.memory(), lab.stream(), to_model, from_model);
        const auto unlent = lent_windows(model, static_cast<wan::cuda::feature_cache*>(nullptr),
                                         lab.memory(), lab.stream(), to_model, from_model);
        for (std::size_t i = 0; i < found.size(); ++i) {
            CHECK(relative_l2(found[i], expected[i]) < (type == dtype::f32 ? 1e-5 : 2e-2));
            // The first window, and the one after that which kept nothing, are lent nothing; that
            // they keep rows changes no bit of them.
            const bool is_lent = i != 0 && i != 4;
            CHECK(identical(found[i], unlent[i]) == !is_lent);
            CHECK((relative_l2(expected[i], alone[i]) > 1e-3) == is_lent);
        }
    }
}

TEST_CASE("a prediction captured in a graph is replayed on other inputs") {
    device_lab lab;
    // Of the small model, and of one with heads that kernels of one architecture compute.
    const auto wide = wan::parse_config(
        R"({"num_attention_heads":2,"attention_head_dim":64,"in_channels":4,"out_channels":3,)"
        R"("text_dim":8,"freq_dim":16,"ffn_dim":40,"num_layers":2,"rope_max_seq_len":32})",
        "wide");
    for (const auto& [type, is_wide] :
         {std::pair(dtype::f32, false), {dtype::bf16, false}, {dtype::bf16, true}}) {
        CAPTURE(name_of(type), is_wide);
        auto model = is_wide ? wan::cuda::transformer<>(
                                   wan::cuda::random_weights(wide, type, lab.memory(), 1),
                                   std::make_shared<wan::cuda::executor>(
                                       wan::cuda::executor_options{type, lab.memory()}))
                             : device_model(lab, *small_model(), type);
        set_texts(model);
        const std::array<index_t, 5> extents{2, 4, 3, 8, 10};
        latent there(extents, dtype::f32, lab.memory());
        latent prediction({2, 3, 3, 8, 10}, dtype::f32, lab.memory());
        tensor<1> times({2}, dtype::f32, lab.memory());
        const latent first = filled_latent(extents, 1);
        call at(first, 0);
        at.samples[1].branch = guidance_branch::unconditional;
        const auto load = [&](float seed) {
            const latent z = filled_latent(extents, seed);
            lab.upload(there.view().data, std::as_bytes(z.elements<float>()));
            const std::array<float, 2> steps{100 * seed, 999 - 100 * seed};
            lab.upload(times.view().data, std::as_bytes(std::span(steps)));
        };
        load(1);
        model.trunk().set_device_timesteps(times.view().as<float>());
        model(there.view(), at.info, prediction.view(), lab.stream());
        const captured_graph graph(
            lab.stream(), [&] { model(there.view(), at.info, prediction.view(), lab.stream()); });
        for (const float seed : {2.0f, 3.0f, 1.0f}) {
            load(seed);
            model(there.view(), at.info, prediction.view(), lab.stream());
            const auto expected = downloaded(lab, prediction);
            const latent nothing = filled_latent({2, 3, 3, 8, 10}, 9);
            lab.upload(prediction.view().data, std::as_bytes(nothing.elements<float>()));
            graph.launch(lab.stream());
            CHECK(identical(downloaded(lab, prediction), expected));

            // The same timesteps as values.
            model.trunk().set_device_timesteps(nullptr);
            at.samples[0].timestep = 100 * seed;
            at.samples[1].timestep = 999 - 100 * seed;
            model(there.view(), at.info, prediction.view(), lab.stream());
            CHECK(identical(downloaded(lab, prediction), expected));
            model.trunk().set_device_timesteps(times.view().as<float>());
        }
        at.samples[0].timestep = at.samples[1].timestep = -1;
        const std::vector<float> by_frame{1, 2, 3};
        at.samples[0].frame_timesteps = by_frame;
        CHECK_THROWS_WITH(model(there.view(), at.info, prediction.view(), lab.stream()),
                          ContainsSubstring("set_device_timesteps(nullptr)"));
    }
}

TEST_CASE("on a GPU memory is taken once, as planned") {
    device_lab lab;
    const wan::config shape = small_model()->config;
    for (const dtype type : {dtype::f32, dtype::bf16}) {
        CAPTURE(name_of(type));
        counting_resource counted(lab.memory().resource);
        const memory_source memory{&counted, memory_space::cuda};
        {
            const auto part = wan::cuda::random_weights(shape, type, memory, 1, {1, 3});
            CHECK(counted.bytes_in_use() == wan::cuda::weight_bytes(shape, type, {1, 3}));
        }
        const auto weights = wan::cuda::upload_weights(*small_model(), type, memory);
        constexpr index_t workspace = 4 << 20;
        wan::cuda::transformer<> model(weights,
                                       std::make_shared<wan::cuda::executor>(
                                           wan::cuda::executor_options{type, memory, workspace}));
        set_texts(model);
        const latent large = filled_latent({1, 4, 3, 8, 10}, 1);
        const latent small = filled_latent({1, 4, 2, 6, 6}, 1);
        const call at(large, 100);
        const call at_small(small, 100);
        const auto first = predicted(lab, model, large, at.info);
        const index_t allocations = counted.allocations();
        static_cast<void>(predicted(lab, model, small, at_small.info));
        CHECK(identical(predicted(lab, model, large, at.info), first));
        CHECK(counted.allocations() == allocations);

        const auto plan =
            wan::cuda::plan_memory(shape, {{0, -1}, {3, 8, 10}, 0, 5 + 3}, type, workspace);
        CHECK(plan.weights == wan::cuda::weight_bytes(shape, type));
        // The time of one sample, its waves and what is made of them are not in the plan.
        const index_t times = 4 * (4 + shape.freq_dim + 8 * shape.width());
        CHECK(counted.bytes_in_use() == plan.total() + times);
    }
    CHECK_THROWS_WITH(wan::cuda::plan_memory(shape, {{0, 3}, {1, 3, 2}}, dtype::bf16),
                      ContainsSubstring("1x3x2"));
}

TEST_CASE("calls that a GPU cannot serve are refused") {
    device_lab lab;
    auto model = device_model(lab, *small_model(), dtype::bf16);
    const latent z = filled_latent({1, 4, 2, 6, 6}, 1);
    const call at(z, 100);
    CHECK_THROWS_WITH(predicted(lab, model, z, at.info), ContainsSubstring("conditional branch"));
    set_texts(model);
    latent prediction({1, 3, 2, 6, 6});
    CHECK_THROWS_WITH(model(z.view(), at.info, prediction.view(), lab.stream()),
                      ContainsSubstring("in cuda memory"));
    const latent there = uploaded(lab, z);
    CHECK_THROWS_WITH(model(there.view(), at.info, prediction.view(), lab.stream()),
                      ContainsSubstring("to be cuda memory"));
    auto context = model.prepare(at.info, lab.stream());
    tensor<3> hidden({1, 18, 28});
    const std::array views{hidden.view()};
    CHECK_THROWS_WITH(model.embed(there.view(), context, views, lab.stream()),
                      ContainsSubstring("cuda memory of [1,18,28]"));
    CHECK_THROWS_WITH(wan::cuda::upload_weights(*small_model(), dtype::f16, lab.memory()),
                      ContainsSubstring("f16"));
    CHECK_THROWS_WITH(wan::cuda::upload_weights(*small_model(), dtype::f32, {}),
                      ContainsSubstring("host"));
    CHECK_THROWS_WITH(wan::cuda::executor({dtype::f32, {}}), ContainsSubstring("host"));
    CHECK_THROWS_WITH(
        wan::cuda::random_weights(small_model()->config, dtype::f32, lab.memory(), 1, {0, 4}),
        ContainsSubstring("[0, 4)"));
    CHECK_THROWS_WITH(wan::cuda::transformer<>(
                          wan::cuda::upload_weights(*small_model(), dtype::f32, lab.memory()),
                          std::make_shared<wan::cuda::executor>(
                              wan::cuda::executor_options{dtype::bf16, lab.memory()})),
                      ContainsSubstring("executor of bf16"));
}
