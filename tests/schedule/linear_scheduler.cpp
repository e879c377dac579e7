// SPDX-License-Identifier: Apache-2.0
// Tables of coefficients that a user fills, and what is refused.
#include "sampling.hpp"

#include <latpar/kernel/reference.hpp>
#include <latpar/schedule/linear_scheduler.hpp>

#include <support/catch.hpp>

using namespace latpar;

namespace {

const linear_form z = linear_form::z();
const linear_form prediction = linear_form::prediction();
const linear_form previous = linear_form::history(0);

linear_scheduler heun_like() {
    return {"mine", {2, 1}, {1, 0.5, 0}, {{z - prediction, {prediction}}, {z + 2 * previous, {z}}}};
}

std::vector<float> values_of(const latent& from) {
    return {from.elements<float>().begin(), from.elements<float>().end()};
}

}  // namespace

TEST_CASE("forms add and scale coefficient by coefficient") {
    const linear_form form = 2 * (z - 0.5 * prediction) + linear_form::noise() + 3 * previous;
    CHECK(std::ranges::equal(form.coefficients(), std::vector<double>{2, -1, 1, 3, 0, 0, 0}));
    CHECK_THROWS_AS(linear_form::history(4), usage_error);
    CHECK_THROWS_WITH(linear_form::history(-1), ContainsSubstring("history tensor -1"));
}

TEST_CASE("a step applies its rows in place") {
    const linear_scheduler scheduler = heun_like();
    CHECK(scheduler.name() == "mine");
    CHECK(scheduler.steps() == 2);
    CHECK(scheduler.history_size() == 1);
    CHECK_FALSE(scheduler.history_live(0, 0));
    CHECK(scheduler.history_live(1, 0));
    CHECK_FALSE(scheduler.draws_noise(0));
    CHECK(scheduler == heun_like());

    latent latents[3]{latent({1, 1, 1, 1, 1}), latent({1, 1, 1, 1, 1}), latent({1, 1, 1, 1, 1})};
    latents[0].elements<float>()[0] = 10;
    latents[1].elements<float>()[0] = 3;
    const latent_view history = latents[2].view();
    const step_state state{latents[0].view(), latents[1].view(), {&history, 1}};
    scheduler.step(0, state, kernel::reference{});
    CHECK(values_of(latents[0]) == std::vector<float>{7});
    CHECK(values_of(latents[2]) == std::vector<float>{3});
    scheduler.step(1, state, kernel::reference{});
    CHECK(values_of(latents[0]) == std::vector<float>{13});
    CHECK(values_of(latents[2]) == std::vector<float>{0});
}

TEST_CASE(
    "schedules whose steps differ have fingerprints that do, whatever their names and levels") {
    const linear_step step{z - prediction, {prediction}};
    const auto mine = [&](const linear_form& last) {
        return linear_scheduler("mine", {2, 1}, {1, 0.5, 0}, {step, {last, {z}}});
    };
    CHECK(mine(z + 2 * previous).fingerprint() == heun_like().fingerprint());
    CHECK(mine(z + 2.5 * previous).fingerprint() != heun_like().fingerprint());
    CHECK_THAT(heun_like().fingerprint(), ContainsSubstring("mine of 2 steps ("));
}

TEST_CASE("what no later step reads is not computed") {
    // Tensor 1 feeds tensor 0, which nobody reads: neither is written.
    const linear_scheduler scheduler(
        "chain", {3, 2, 1}, {3, 2, 1, 0},
        {{z, {z, z}}, {z, {linear_form::history(1), z}}, {z - prediction, {z, z}}});
    for (index_t i = 0; i < 3; ++i) {
        CHECK_FALSE(scheduler.history_live(i, 0));
        CHECK_FALSE(scheduler.history_live(i, 1));
        const auto history_rows = scheduler.coefficients(i).subspan(5);
        CHECK(std::ranges::all_of(history_rows, [](float value) { return value == 0; }));
    }
}

TEST_CASE("tables that do not hold together are refused") {
    using steps = std::vector<linear_step>;
    const auto make = [](std::vector<double> timesteps, std::vector<double> sigmas, steps rules) {
        return linear_scheduler("mine", std::move(timesteps), std::move(sigmas), rules);
    };
    CHECK_THROWS_AS(make({}, {0}, {}), usage_error);
    CHECK_THROWS_WITH(make({}, {0}, {}), ContainsSubstring("no steps"));
    CHECK_THROWS_WITH(make({1, 2}, {1, 0}, steps{{z}}),
                      ContainsSubstring("2 timesteps and 2 sigmas; it takes 1 and 2"));
    CHECK_THROWS_WITH(make({1}, {HUGE_VAL, 0}, steps{{z}}), ContainsSubstring("must be finite"));
    CHECK_THROWS_WITH(make({1}, {1, 0}, steps{{1e40 * z}}),
                      ContainsSubstring("step 0") && ContainsSubstring("1e+40"));
    CHECK_THROWS_WITH(make({1}, {1, 0}, steps{{z, {z, z, z, z, z}}}),
                      ContainsSubstring("5 history tensors; at most 4"));
    CHECK_THROWS_WITH(make({2, 1}, {2, 1, 0}, steps{{z, {z}}, {z}}),
                      ContainsSubstring("step 1") && ContainsSubstring("keeps 0"));
    CHECK_THROWS_WITH(make({1}, {1, 0}, steps{{z + previous, {z}}}),
                      ContainsSubstring("step 0") && ContainsSubstring("no step has written"));
    CHECK_THROWS_WITH(make({1}, {1, 0}, steps{{z + previous}}),
                      ContainsSubstring("reads history tensor 0; it keeps 0"));
}

TEST_CASE("states and indices that do not fit are refused") {
    const linear_scheduler scheduler = heun_like();
    latent a({1, 1, 1, 1, 2});
    latent b({1, 1, 1, 1, 2});
    latent c({1, 1, 1, 1, 3});
    const kernel::reference kernels;
    CHECK_THROWS_AS(scheduler.step(0, {a.view(), b.view()}, kernels), usage_error);
    CHECK_THROWS_WITH(scheduler.step(0, {a.view(), b.view()}, kernels),
                      ContainsSubstring("keeps 1 history tensors, the state has 0"));
    const latent_view history = c.view();
    CHECK_THROWS_WITH(scheduler.step(0, {a.view(), b.view(), {&history, 1}}, kernels),
                      ContainsSubstring("[1, 1, 1, 1, 3]"));
    CHECK_THROWS_WITH(scheduler.history_live(2, 0),
                      ContainsSubstring("step 2") && ContainsSubstring("has 2 steps"));
    CHECK_THROWS_WITH(scheduler.draws_noise(-1), ContainsSubstring("step -1"));
    CHECK_THROWS_WITH(scheduler.history_live(0, 1), ContainsSubstring("history tensor 1"));

    const linear_scheduler noisy("noisy", {1}, {1, 0}, {{z + linear_form::noise()}});
    CHECK(noisy.draws_noise(0));
    CHECK_THROWS_WITH(noisy.step(0, {a.view(), b.view()}, kernels),
                      ContainsSubstring("reads noise"));
}
