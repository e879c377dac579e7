// SPDX-License-Identifier: Apache-2.0
// A scheduler whose every step is linear.
#include <latpar/schedule/detail/hash_of.hpp>
#include <latpar/schedule/linear_scheduler.hpp>

#include <cmath>
#include <utility>

namespace latpar::inline v0 {

using detail::require;

linear_scheduler::linear_scheduler(std::string name, std::vector<double> timesteps,
                                   std::vector<double> sigmas,
                                   const std::vector<linear_step>& steps)
    : name_(std::move(name)), timesteps_(std::move(timesteps)), sigmas_(std::move(sigmas)) {
    require(!steps.empty(), "scheduler ", name_, " has no steps; give at least one");
    require(timesteps_.size() == steps.size() && sigmas_.size() == steps.size() + 1, "scheduler ",
            name_, " of ", steps.size(), " steps was given ", timesteps_.size(), " timesteps and ",
            sigmas_.size(), " sigmas; it takes ", steps.size(), " and ", steps.size() + 1);
    for (const std::vector<double>* values : {&timesteps_, &sigmas_}) {
        for (const double value : *values) {
            require(std::isfinite(value), "scheduler ", name_, " was given ", value,
                    " as a timestep or sigma; it must be finite");
        }
    }
    history_size_ = static_cast<index_t>(steps[0].history.size());
    require(history_size_ <= linear_form::max_history, "scheduler ", name_, " keeps ",
            history_size_, " history tensors; at most ", linear_form::max_history, " are served");

    coefficients_.reserve(steps.size() * rows() * columns());
    for (std::size_t i = 0; i < steps.size(); ++i) {
        require(steps[i].history.size() == steps[0].history.size(), "step ", i, " of scheduler ",
                name_, " keeps ", steps[i].history.size(), " history tensors, step 0 keeps ",
                history_size_, "; they must be the same");
        for (std::size_t row = 0; row < rows(); ++row) {
            const linear_form& form = row == 0 ? steps[i].z : steps[i].history[row - 1];
            for (std::size_t column = 0; column < linear_form::size; ++column) {
                const auto value = static_cast<float>(form.coefficients()[column]);
                require(std::isfinite(value), "step ", i, " of scheduler ", name_,
                        " has the coefficient ", form.coefficients()[column],
                        "; it must be finite in float32");
                if (column < columns()) {
                    coefficients_.push_back(value);
                } else {
                    require(value == 0, "step ", i, " of scheduler ", name_,
                            " reads history tensor ", column - 3, "; it keeps ", history_size_);
                }
            }
        }
    }
    drop_unread_history();
    for (index_t k = 0; k < history_size_; ++k) {
        require(!history_live(0, k), "step 0 of scheduler ", name_, " reads history tensor ", k,
                ", which no step has written; give the first step a rule without history");
    }
}

void linear_scheduler::drop_unread_history() {
    // From the last step back: a tensor that is not written keeps nothing else alive.
    for (index_t i = steps() - 1; i >= 0; --i) {
        for (index_t k = 0; k < history_size_; ++k) {
            if (i + 1 < steps() && history_live(i + 1, k)) continue;
            const std::size_t row =
                static_cast<std::size_t>(i) * rows() + static_cast<std::size_t>(1 + k);
            std::fill_n(coefficients_.begin() + static_cast<std::ptrdiff_t>(row * columns()),
                        columns(), 0.0f);
        }
    }
}

std::span<const float> linear_scheduler::coefficients(index_t i) const {
    require(i >= 0 && i < steps(), "step ", i, " was asked of scheduler ", name_, ", which has ",
            steps(), " steps");
    const std::size_t size = rows() * columns();
    return std::span(coefficients_).subspan(static_cast<std::size_t>(i) * size, size);
}

std::string linear_scheduler::fingerprint() const {
    return detail::concat(
        name_, " of ", steps(), " steps (",
        detail::hash_of(timesteps(), sigmas(), std::span(std::as_const(coefficients_))), ')');
}

bool linear_scheduler::reads(index_t i, std::size_t column) const {
    const auto matrix = coefficients(i);
    for (std::size_t row = 0; row < rows(); ++row) {
        if (matrix[row * columns() + column] != 0) return true;
    }
    return false;
}

bool linear_scheduler::history_live(index_t i, index_t k) const {
    require(k >= 0 && k < history_size_, "history tensor ", k, " was asked of scheduler ", name_,
            ", which keeps ", history_size_);
    return reads(i, static_cast<std::size_t>(3 + k));
}

bool linear_scheduler::draws_noise(index_t i) const {
    return reads(i, 2);
}

void linear_scheduler::check(index_t i, const step_state& state) const {
    require(static_cast<index_t>(state.history.size()) == history_size_, "scheduler ", name_,
            " keeps ", history_size_, " history tensors, the state has ", state.history.size());
    require(state.noise.data != nullptr || state.z.elements() == 0 || !draws_noise(i), "step ", i,
            " of scheduler ", name_,
            " reads noise; fill the state's noise when draws_noise is true");
}

}  // namespace latpar::inline v0
