// SPDX-License-Identifier: Apache-2.0
// What policies rely on: the state of a scheduler is its latent and its live history, and parts
// of a latent can be stepped apart.
#include "sampling.hpp"

#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/ddim.hpp>

#include <support/catch.hpp>

using namespace latpar;

namespace {

std::vector<linear_scheduler> all_schedulers(index_t steps) {
    std::vector<linear_scheduler> out;
    for (const std::string_view name : schedule::names) {
        out.push_back(schedule::by_name(name, steps));
    }
    auto noisy = schedule::ddim_options::v(steps);
    noisy.eta = 0.6;
    out.push_back(schedule::ddim(noisy));
    return out;
}

bool has_nan(const latent& values) {
    return std::ranges::any_of(values.elements<float>(), [](float x) { return std::isnan(x); });
}

bool is_zero(const latent& values) {
    return std::ranges::all_of(values.elements<float>(), [](float x) { return x == 0; });
}

const latent& initial() {
    static const latent out = noise_latent({1, 2, 3, 5, 7});
    return out;
}

}  // namespace

TEST_CASE("a cloned state continues with the same bits, whatever its dead history holds") {
    for (const index_t n : {1, 2, 3, 9}) {
        for (const linear_scheduler& scheduler : all_schedulers(n)) {
            CAPTURE(scheduler.name(), n);
            sampling original(scheduler, initial());
            for (index_t i = 0; i < n; ++i) {
                sampling twin = original;
                for (index_t k = 0; k < scheduler.history_size(); ++k) {
                    if (!scheduler.history_live(i, k)) twin.poison(k);
                }
                original.step(i, closed_form{});
                twin.step(i, closed_form{});
                CHECK(same_bits(original.z, twin.z));
                for (std::size_t k = 0; k < original.history.size(); ++k) {
                    CHECK(same_bits(original.history[k], twin.history[k]));
                    CHECK_FALSE(has_nan(original.history[k]));
                }
            }
            CHECK_FALSE(has_nan(original.z));
        }
    }
}

TEST_CASE("live history is read, and what the next step does not read becomes zero") {
    for (const linear_scheduler& scheduler : all_schedulers(9)) {
        CAPTURE(scheduler.name());
        sampling state(scheduler, initial());
        for (index_t i = 0; i < scheduler.steps(); ++i) {
            for (index_t k = 0; k < scheduler.history_size(); ++k) {
                if (!scheduler.history_live(i, k)) continue;
                sampling poisoned = state;
                poisoned.poison(k);
                poisoned.step(i, closed_form{});
                CHECK((has_nan(poisoned.z) || std::ranges::any_of(poisoned.history, has_nan)));
            }
            state.step(i, closed_form{});
            for (index_t k = 0; k < scheduler.history_size(); ++k) {
                const bool read = i + 1 < scheduler.steps() && scheduler.history_live(i + 1, k);
                CHECK(is_zero(state.history[static_cast<std::size_t>(k)]) == !read);
            }
        }
    }
}

TEST_CASE("two halves stepped apart have the bits of the whole") {
    for (const axis cut : all_axes) {
        for (const linear_scheduler& scheduler : all_schedulers(6)) {
            CAPTURE(scheduler.name(), name_of(cut));
            sampling whole(scheduler, initial());
            sampling halves(scheduler, initial());
            for (index_t i = 0; i < scheduler.steps(); ++i) {
                whole.step(i, closed_form{});
                halves.predict(i, closed_form{});
                const box all = halves.whole();
                const index_t middle = all.end(cut) / 2;
                halves.step_part(i, slab(all, cut, middle, all.end(cut)));
                halves.step_part(i, slab(all, cut, 0, middle));
                CHECK(same_bits(whole.z, halves.z));
            }
        }
    }
}

TEST_CASE("history is as small as the method allows") {
    const auto live = [](const linear_scheduler& scheduler) {
        std::vector<index_t> out;
        for (index_t i = 0; i < scheduler.steps(); ++i) {
            index_t count = 0;
            for (index_t k = 0; k < scheduler.history_size(); ++k) {
                count += scheduler.history_live(i, k);
            }
            out.push_back(count);
        }
        return out;
    };
    CHECK(live(schedule::by_name("euler_flow", 5)) == std::vector<index_t>{0, 0, 0, 0, 0});
    CHECK(live(schedule::by_name("ddim_v", 5)) == std::vector<index_t>{0, 0, 0, 0, 0});
    CHECK(live(schedule::by_name("dpmpp2m_flow", 5)) == std::vector<index_t>{0, 1, 1, 1, 0});
    CHECK(live(schedule::by_name("unipc_flow", 5)) == std::vector<index_t>{0, 2, 2, 2, 0});
}

TEST_CASE("a model that knows the data ends at the data, in however few steps") {
    // Such a model predicts noise and data that explain z exactly, so each solver must be exact.
    for (const std::string name : {"euler_flow", "unipc_flow", "dpmpp2m_flow", "dpmpp2m_eps"}) {
        for (const index_t n : {1, 2, 3, 4, 30}) {
            CAPTURE(name, n);
            const linear_scheduler scheduler = schedule::by_name(name, n);
            const latent data = noise_latent(initial().view().extents);
            sampling state(scheduler, initial());
            state.prediction = latent(data.view().extents);
            for (index_t i = 0; i < n; ++i) {
                const double sigma = scheduler.sigmas()[static_cast<std::size_t>(i)];
                for (std::size_t j = 0; j < data.elements<float>().size(); ++j) {
                    const double z = state.z.elements<float>()[j];
                    const double x0 = data.elements<float>()[j];
                    const double alpha =
                        name == "dpmpp2m_eps" ? 1 / std::sqrt(1 + sigma * sigma) : 1;
                    // z = alpha (x0 + sigma e), or z = x0 + sigma v.
                    state.prediction.elements<float>()[j] =
                        static_cast<float>((z / alpha - x0) / sigma);
                }
                state.step_part(i, state.whole());
            }
            for (std::size_t j = 0; j < data.elements<float>().size(); ++j) {
                CHECK(state.z.elements<float>()[j] ==
                      Approx(data.elements<float>()[j]).margin(2e-5));
            }
        }
    }
}
