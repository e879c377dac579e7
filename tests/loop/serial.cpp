// SPDX-License-Identifier: Apache-2.0
// The plain loop: its stepper, its start, its memory.
#include <latpar/loop/serial.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/ddim.hpp>
#include <latpar/schedule/philox_noise.hpp>
#include <latpar/step/guided.hpp>

#include <support/catch.hpp>
#include <support/closed_form.hpp>
#include <support/own_stream.hpp>
#include <support/recorded.hpp>

#include <cstring>

using namespace latpar;

namespace {

constexpr std::array<index_t, 5> extents{2, 3, 4, 5, 6};

bool same(latent& a, latent& b) {
    return std::memcmp(a.view().data, b.view().data, static_cast<std::size_t>(a.bytes())) == 0;
}

}  // namespace

TEST_CASE("run, stepper and a prediction that was made elsewhere give the same bits") {
    for (const std::string_view name : schedule::names) {
        closed_form model{0.7f, -0.3f, 4.0f};
        const auto scheduler = schedule::by_name(name, 6);
        const philox_noise noise(3);
        latent by_run(extents);
        latent by_steps(extents);
        latent by_supply(extents);

        loop::serial run(model, scheduler, extents);
        run.start(noise);
        run.run(noise);
        run.collect(by_run.view());

        loop::serial steps(model, scheduler, extents);
        steps.start(noise);
        index_t calls = 0;
        while (!steps.done()) {
            const auto next = steps.next_request();
            CHECK(next.info.samples.size() == 2);
            CHECK(next.info.samples[1].step == calls);
            CHECK(next.info.samples[1].timestep ==
                  scheduler.timesteps()[static_cast<std::size_t>(calls)]);
            CHECK(next.info.window == box_of({4, 5, 6}));
            model(next.z, next.info, next.prediction, {});
            steps.advance();
            ++calls;
        }
        CHECK(calls == 6);
        steps.collect(by_steps.view());

        latent elsewhere(extents);
        loop::serial supplied(model, scheduler, extents);
        supplied.start(noise);
        while (!supplied.done()) {
            const auto next = supplied.next_request();
            model(next.z, next.info, elsewhere.view(), {});
            supplied.supply(elsewhere.view());
            supplied.advance();
        }
        supplied.collect(by_supply.view());

        CAPTURE(name);
        CHECK(same(by_run, by_steps));
        CHECK(same(by_run, by_supply));
    }
}

TEST_CASE("a whole latent can be the start, and a loop can start again") {
    closed_form model{0.7f, -0.3f, 4.0f};
    const philox_noise noise(3);
    latent initial(extents);
    noise.fill(initial.view(), box_of({4, 5, 6}), {0, 0});
    loop::serial loop(model, schedule::by_name("unipc_flow", 5), extents);
    latent first(extents);
    latent second(extents);
    loop.start(std::as_const(initial).view());
    loop.run(noise, own_stream{});
    loop.collect(first.view());
    loop.start(noise);
    loop.run(noise);
    loop.collect(second.view());
    CHECK(same(first, second));
    latent small({1, 3, 4, 5, 6});
    CHECK_THROWS_AS(loop.start(std::as_const(small).view()), usage_error);
    CHECK_THROWS_WITH(loop.run(noise), ContainsSubstring("call start first"));
}

TEST_CASE("a callback stops the loop after the step it names") {
    closed_form model;
    loop::serial loop(model, schedule::by_name("euler_flow", 5), extents);
    const philox_noise noise(3);
    loop.start(noise);
    CHECK_FALSE(loop.run(noise, [](index_t step) { return step < 2; }));
    CHECK(loop.step() == 3);
    CHECK(loop.run(noise, [](index_t) { return true; }));
    CHECK(loop.done());
}

TEST_CASE("a scheduler that draws noise needs a source") {
    closed_form model;
    auto options = schedule::ddim_options::epsilon(4);
    options.eta = 1;
    loop::serial loop(model, schedule::ddim(options), extents);
    const philox_noise noise(3);
    loop.start(noise);
    static_cast<void>(loop.next_request());
    CHECK_THROWS_WITH(loop.advance(), ContainsSubstring("noise source"));
}

TEST_CASE("memory is taken once: latent, prediction and history") {
    closed_form model;
    counting_resource memory;
    loop::serial loop(model, schedule::by_name("unipc_flow", 5), extents, kernel::host{},
                      dtype::f32, {&memory, memory_space::host});
    CHECK(memory.peak_bytes() == 4 * 2 * 3 * 4 * 5 * 6 * 4);
    const index_t before = memory.allocations();
    const philox_noise noise(3);
    loop.start(noise);
    loop.run(noise);
    CHECK(memory.allocations() == before);
}

TEST_CASE("guided combines the branches as u + scale (c - u)") {
    closed_form direct{0.7f, -0.3f, 4.0f};
    guided wrapped(direct, 4.0);
    latent z(extents);
    philox_noise(5).fill(z.view(), box_of({4, 5, 6}), {0, 0});
    std::vector<sample_info> samples(2);
    for (sample_info& sample : samples) sample.timestep = 300;
    const step_info info{samples, box_of({4, 5, 6}), {4, 5, 6}, {}};
    latent expected(extents);
    latent got(extents);
    direct(std::as_const(z).view(), info, expected.view(), {});
    wrapped(std::as_const(z).view(), info, got.view(), {});
    CHECK(relative_l2(got, expected) < 1e-6);
    CHECK(samples[0].branch == guidance_branch::guided);
}

TEST_CASE("a latent that cannot be sampled is refused before anything is taken for it") {
    closed_form model;
    const auto refused = [&](const std::array<index_t, 5>& wrong, dtype type, const char* why) {
        counting_resource memory;
        CHECK_THROWS_WITH(loop::serial(model, schedule::by_name("euler_flow", 2), wrong,
                                       kernel::host{}, type, {&memory, memory_space::host}),
                          ContainsSubstring(why));
        CHECK(memory.allocations() == 0);
    };
    refused({0, 3, 4, 5, 6}, dtype::f32, "batch 0");
    refused({1, -4, 4, 5, 6}, dtype::f32, "-4 channels");
    refused({1, 3, 0, 5, 6}, dtype::f32, "extent along T is 0");
    refused({1, 4, 6, 8, index_t{1} << 60}, dtype::f32, "more bytes than can be counted");
    refused(extents, dtype::i64, "dtype i64 cannot be sampled in");
}

TEST_CASE("a model behind std::ref is asked for what else it has") {
    struct wide : closed_form {
        [[nodiscard]] index_t max_batch() const { return 8; }
        void abort(std::string_view why) { reason = why; }
        std::string reason;
    };
    wide model;
    CHECK(max_batch_of(std::ref(model)) == 8);
    guided wrapped(std::ref(model), 4.0);
    CHECK(wrapped.max_batch() == 8);
    wrapped.abort("no more");
    CHECK(model.reason == "no more");
    const wide& fixed = model;
    CHECK(max_batch_of(fixed) == 8);
    const auto plain = [](const_latent_view, const step_info&, latent_view, stream_ref) {};
    CHECK(max_batch_of(plain) == 1);
    CHECK(max_batch_of(std::ref(plain)) == 1);
}

TEST_CASE("a loop that was not started, or is done, says so") {
    closed_form model;
    loop::serial loop(model, schedule::by_name("euler_flow", 2), extents);
    latent out(extents);
    CHECK_THROWS_WITH(loop.collect(out.view()), ContainsSubstring("call start"));
    CHECK_THROWS_WITH(loop.next_request(), ContainsSubstring("call start"));
    const philox_noise noise(3);
    loop.start(noise);
    loop.run(noise);
    CHECK_THROWS_WITH(loop.next_request(), ContainsSubstring("start again"));
}
