// SPDX-License-Identifier: Apache-2.0
// Options that the scheduler factories refuse, and schedulers by name.
#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/ddim.hpp>
#include <latpar/schedule/dpmpp2m.hpp>
#include <latpar/schedule/euler_flow.hpp>
#include <latpar/schedule/unipc_flow.hpp>

#include <support/catch.hpp>

#include <cmath>

using namespace latpar;
using schedule::prediction_type;

TEST_CASE("by_name knows the six schedulers, and lists them for any other name") {
    for (const std::string_view name : schedule::names) {
        const linear_scheduler scheduler = schedule::by_name(name, 7);
        CHECK(scheduler.name() == name);
        CHECK(scheduler.steps() == 7);
    }
    CHECK(schedule::by_name("euler_flow", 50) == schedule::euler_flow());
    CHECK(schedule::by_name("unipc_flow", 50) == schedule::unipc_flow());
    CHECK(schedule::by_name("dpmpp2m_flow", 50) == schedule::dpmpp2m());
    CHECK(schedule::by_name("ddim_eps", 50) == schedule::ddim());
    CHECK_THROWS_AS(schedule::by_name("heun", 7), usage_error);
    CHECK_THROWS_WITH(schedule::by_name("heun", 7),
                      ContainsSubstring("'heun'") &&
                          ContainsSubstring("euler_flow, unipc_flow, dpmpp2m_flow, ddim_eps, "
                                            "ddim_v, dpmpp2m_eps"));
}

TEST_CASE("a number of steps that cannot be taken is refused") {
    for (const std::string_view name : schedule::names) {
        for (const index_t steps : {index_t{0}, index_t{-3}, index_t{1} << 40}) {
            CAPTURE(name, steps);
            CHECK_THROWS_WITH(schedule::by_name(name, steps),
                              ContainsSubstring(std::to_string(steps) + " steps"));
        }
    }
    CHECK_THROWS_WITH(schedule::by_name("ddim_eps", 1000), ContainsSubstring("1 to 999"));
    CHECK_THROWS_WITH(schedule::by_name("ddim_v", 1001), ContainsSubstring("1 to 1000"));
    CHECK_THROWS_WITH(schedule::by_name("dpmpp2m_eps", 1000), ContainsSubstring("1 to 999"));
    CHECK(schedule::by_name("dpmpp2m_eps", 999).steps() == 999);
}

TEST_CASE("a shift that is not positive is refused, another one moves the steps") {
    for (const double shift : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
        CHECK_THROWS_AS(schedule::euler_flow({.shift = shift}), usage_error);
        CHECK_THROWS_AS(schedule::unipc_flow({.shift = shift}), usage_error);
        CHECK_THROWS_AS(schedule::dpmpp2m({.shift = shift}), usage_error);
    }
    const linear_scheduler plain = schedule::euler_flow({.steps = 3, .shift = 1});
    CHECK(plain.sigmas()[1] == Approx(0.5005));
    CHECK(schedule::unipc_flow({.steps = 2, .shift = 1}).sigmas()[1] == Approx(0.5005));
    CHECK(schedule::dpmpp2m({.steps = 2, .shift = 1}).sigmas()[1] == Approx(0.4995));
}

TEST_CASE("predictions that a scheduler does not serve are refused") {
    CHECK_THROWS_WITH(schedule::dpmpp2m({.prediction = prediction_type::v}),
                      ContainsSubstring("prediction v") && ContainsSubstring("flow or epsilon"));
    CHECK_THROWS_WITH(schedule::ddim({.prediction = prediction_type::flow}),
                      ContainsSubstring("prediction flow") && ContainsSubstring("epsilon or v"));
    auto blind = schedule::ddim_options::v(10);
    blind.prediction = prediction_type::epsilon;
    CHECK_THROWS_WITH(schedule::ddim(blind), ContainsSubstring("timestep 999"));
    CHECK_THROWS_WITH(schedule::dpmpp2m({.prediction = prediction_type::epsilon,
                                         .betas = {.zero_terminal_snr = true}}),
                      ContainsSubstring("zero_terminal_snr = false"));
}

TEST_CASE("eta and betas out of range are refused") {
    for (const double eta : {-0.1, 1.1, std::nan("")}) {
        CHECK_THROWS_WITH(schedule::ddim({.eta = eta}), ContainsSubstring("eta"));
    }
    CHECK_THROWS_WITH(schedule::ddim({.betas = {.start = 0}}),
                      ContainsSubstring("0 < start <= end < 1"));
    CHECK_THROWS_AS(schedule::alphas_bar({.start = 0.02, .end = 0.01}), usage_error);
    CHECK_THROWS_AS(schedule::alphas_bar({.end = 1}), usage_error);
}
