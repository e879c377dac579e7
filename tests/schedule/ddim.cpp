// SPDX-License-Identifier: Apache-2.0
// DDIM with fresh noise, against ancestral sampling.
#include <latpar/schedule/ddim.hpp>

#include <support/catch.hpp>

#include <cmath>

using namespace latpar;

namespace {

/// abar by its definition, in long double.
std::vector<long double> signal_of(bool zero_terminal_snr) {
    std::vector<long double> roots;
    long double product = 1;
    for (int t = 0; t < 1000; ++t) {
        const long double beta = std::pow(
            std::sqrt(0.00085L) + t * (std::sqrt(0.012L) - std::sqrt(0.00085L)) / 999, 2.0L);
        roots.push_back(std::sqrt(product *= 1 - beta));
    }
    const long double first = roots.front();
    const long double last = roots.back();
    for (long double& root : roots) {
        if (zero_terminal_snr) root = (root - last) * (first / (first - last));
        root *= root;
    }
    return roots;
}

struct set_up {
    schedule::ddim_options options;
    std::vector<long double> signal;
    long double final_signal;
};

std::vector<set_up> both_set_ups(index_t steps) {
    const auto plain = signal_of(false);
    return {{schedule::ddim_options::epsilon(steps), plain, plain[0]},
            {schedule::ddim_options::v(steps), signal_of(true), 1}};
}

}  // namespace

TEST_CASE("eta 1 is ancestral sampling, and less eta keeps the variance") {
    for (const index_t n : {3, 8, 50}) {
        for (auto& [options, signal, final_signal] : both_set_ups(n)) {
            for (const double eta : {0.0, 0.4, 1.0}) {
                options.eta = eta;
                const linear_scheduler scheduler = schedule::ddim(options);
                for (index_t i = 0; i < n; ++i) {
                    const auto t =
                        static_cast<index_t>(scheduler.timesteps()[static_cast<std::size_t>(i)]);
                    const index_t next = t - 1000 / n;
                    const long double a = signal[static_cast<std::size_t>(t)];
                    const long double b =
                        next >= 0 ? signal[static_cast<std::size_t>(next)] : final_signal;
                    // The posterior of z' given z and x0: mean = from_z z + from_data x0.
                    const long double ratio = a / b;
                    const long double variance = (1 - b) / (1 - a) * (1 - ratio);
                    const long double from_z = std::sqrt(ratio) * (1 - b) / (1 - a);
                    const long double from_data = std::sqrt(b) * (1 - ratio) / (1 - a);

                    const auto matrix = scheduler.coefficients(i);
                    CAPTURE(scheduler.name(), n, eta, i);
                    CHECK(matrix[2] == Approx(static_cast<double>(eta * std::sqrt(variance)))
                                           .epsilon(1e-6)
                                           .margin(1e-9));
                    CHECK(scheduler.draws_noise(i) == (eta > 0 && variance > 0));

                    // What z' holds of x0 and of the noise e in z, for a model that is right.
                    const long double alpha = std::sqrt(a);
                    const long double sigma = std::sqrt(1 - a);
                    const bool v = options.prediction == schedule::prediction_type::v;
                    const long double data = matrix[0] * alpha - (v ? matrix[1] * sigma : 0);
                    const long double noise = matrix[0] * sigma + matrix[1] * (v ? alpha : 1);
                    CHECK(static_cast<double>(data) ==
                          Approx(static_cast<double>(std::sqrt(b))).epsilon(1e-6).margin(1e-6));
                    CHECK(static_cast<double>(noise * noise + matrix[2] * matrix[2]) ==
                          Approx(static_cast<double>(1 - b)).epsilon(1e-5).margin(1e-6));
                    if (eta == 1) {
                        CHECK(
                            static_cast<double>(noise) ==
                            Approx(static_cast<double>(from_z * sigma)).epsilon(1e-5).margin(1e-6));
                        CHECK(static_cast<double>(data) ==
                              Approx(static_cast<double>(from_z * alpha + from_data))
                                  .epsilon(1e-5)
                                  .margin(1e-6));
                    }
                }
            }
        }
    }
}

TEST_CASE("zero terminal SNR leaves nothing of the data at the last timestep") {
    const auto signal = schedule::alphas_bar({.zero_terminal_snr = true});
    REQUIRE(signal.size() == 1000);
    CHECK(signal.back() == 0);
    CHECK(signal.front() == schedule::alphas_bar({}).front());
}

TEST_CASE("the most steps visit every timestep") {
    const linear_scheduler trailing = schedule::ddim(schedule::ddim_options::v(1000));
    const linear_scheduler leading = schedule::ddim(schedule::ddim_options::epsilon(999));
    for (index_t i = 0; i < 999; ++i) {
        CHECK(trailing.timesteps()[static_cast<std::size_t>(i)] == static_cast<double>(999 - i));
        CHECK(leading.timesteps()[static_cast<std::size_t>(i)] == static_cast<double>(999 - i));
    }
}
