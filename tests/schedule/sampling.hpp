// SPDX-License-Identifier: Apache-2.0
// A sampling loop in the open, for the scheduler tests.
#pragma once

#include <latpar/core/memory.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/schedule/linear_scheduler.hpp>
#include <latpar/schedule/philox_noise.hpp>

#include <support/closed_form.hpp>

/// A latent and its scheduler's history; copies are deep.
class sampling {
public:
    sampling(const latpar::linear_scheduler& schedule, const latpar::latent& initial)
        : schedule_(&schedule) {
        z = clone(initial);
        for (latpar::index_t k = 0; k < schedule.history_size(); ++k) {
            history.emplace_back(initial.view().extents);
            poison(k);
        }
    }
    sampling(const sampling& other) : schedule_(other.schedule_) {
        z = clone(other.z);
        for (const latpar::latent& each : other.history) history.push_back(clone(each));
    }

    /// Denoises by `model` at step i and steps the part of every tensor inside `part`.
    void step(latpar::index_t i, const closed_form& model) {
        predict(i, model);
        step_part(i, whole());
    }

    void predict(latpar::index_t i, const closed_form& model) {
        prediction = latpar::latent(z.view().extents);
        const latpar::sample_info sample{
            .step = i, .timestep = schedule_->timesteps()[static_cast<std::size_t>(i)]};
        model(z.view(), {.samples = {&sample, 1}, .window = whole(), .global = whole().extent},
              prediction.view(), {});
    }

    void step_part(latpar::index_t i, const latpar::box& part) {
        std::vector<latpar::latent_view> views;
        for (latpar::latent& each : history) views.push_back(latpar::subview(each.view(), part));
        const auto [batch, channels, t, h, w] = z.view().extents;
        latpar::latent noise;
        if (schedule_->draws_noise(i)) {
            noise =
                latpar::latent({batch, channels, part.extent[0], part.extent[1], part.extent[2]});
            latpar::philox_noise(5).fill(noise.view(), part, {1, i});
        }
        schedule_->step(i,
                        {latpar::subview(z.view(), part), latpar::subview(prediction.view(), part),
                         views, noise.view()},
                        latpar::kernel::host{});
    }

    void poison(latpar::index_t k) {
        std::ranges::fill(history[static_cast<std::size_t>(k)].elements<float>(), std::nanf(""));
    }

    [[nodiscard]] latpar::box whole() { return latpar::box_of(latpar::spatial_extents(z.view())); }

    [[nodiscard]] static latpar::latent clone(const latpar::latent& from) {
        latpar::latent out(from.view().extents);
        std::ranges::copy(from.elements<float>(), out.elements<float>().begin());
        return out;
    }

    latpar::latent z;
    latpar::latent prediction;
    std::vector<latpar::latent> history;

private:
    const latpar::linear_scheduler* schedule_;
};

inline latpar::latent noise_latent(const std::array<latpar::index_t, 5>& extents) {
    latpar::latent out(extents);
    latpar::philox_noise(3).fill(out.view(), latpar::box_of(latpar::spatial_extents(out.view())),
                                 {});
    return out;
}

inline bool same_bits(const latpar::latent& a, const latpar::latent& b) {
    return a.bytes() == b.bytes() &&
           std::equal(a.view().data, a.view().data + a.bytes(), b.view().data);
}
