// SPDX-License-Identifier: Apache-2.0
// LatentParallel on thread ranks: against one rank, against its own simulation, against its plan.
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/ddim.hpp>

#include <support/catch.hpp>
#include <support/closed_form.hpp>
#include <support/expect.hpp>
#include <support/latent_parallel_run.hpp>
#include <support/messages_of.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>

using namespace latpar;

namespace {

constexpr std::array layouts{latent_layout::central, latent_layout::replicated,
                             latent_layout::sharded};

struct stitch_count {
    int alone = 0;
    int fused = 0;
};

/// Counts stitches that are a pass of their own, and those within a step.
struct counting_kernels : kernel::host {
    static constexpr bool prefers_fewer_passes = true;
    stitch_count* count = nullptr;

    void stitch(latent_view output, axis along, std::span<const kernel::stitch_part> parts,
                stream_ref stream) const {
        ++count->alone;
        kernel::host::stitch(output, along, parts, stream);
    }
    void stitch_combination(const kernel::stitched_input& stitched,
                            std::span<const const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latent_view> outputs, stream_ref stream) const {
        ++count->fused;
        kernel::host::stitch_combination(stitched, inputs, coefficients, outputs, stream);
    }
};

std::vector<rank_report> on_threads(const latent_parallel_plan& plan, const any_model& model,
                                    const sampling_case& c) {
    std::vector<rank_report> out(static_cast<std::size_t>(plan.ranks));
    thread_team(plan.ranks).run([&](thread_communicator& comm) {
        out[static_cast<std::size_t>(comm.rank())] = sample_in_parallel(comm, plan, model, c);
    });
    return out;
}

std::vector<float> simulated(const sampling_case& c, latent_parallel_options options, int parts,
                             const any_model& model) {
    options.parts = parts;
    self_communicator comm;
    return sample_in_parallel(comm, plan_latent_parallel(c.problem(), options, 1), model, c).latent;
}

bool bitwise_equal(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
    double difference = 0;
    double norm = 0;
    for (std::size_t i = 0; i < b.size(); ++i) {
        difference += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
        norm += double(b[i]) * b[i];
    }
    return std::sqrt(difference / norm);
}

/// Acts on each position by itself.
void pointwise(const_latent_view z, const step_info& info, latent_view prediction, stream_ref) {
    const auto [batch, channels, frames, height, width] = z.extents;
    for (index_t b = 0; b < batch; ++b)
        for (index_t c = 0; c < channels; ++c)
            for (index_t t = 0; t < frames; ++t)
                for (index_t h = 0; h < height; ++h)
                    for (index_t w = 0; w < width; ++w) {
                        const std::array at{b, c, t, h, w};
                        const float x = z.as<float>()[z.offset(at)];
                        prediction.as<float>()[prediction.offset(at)] =
                            std::tanh(x) * float(0.5 + info.samples[0].timestep / 1000);
                    }
}

/// The mean over a cube of radius R, cut off at the edges of what it is given.
any_model neighbourhood(index_t radius) {
    return [radius](const_latent_view z, const step_info&, latent_view prediction, stream_ref) {
        const auto [batch, channels, frames, height, width] = z.extents;
        for (index_t t = 0; t < frames; ++t)
            for (index_t h = 0; h < height; ++h)
                for (index_t w = 0; w < width; ++w) {
                    float sum = 0;
                    for (index_t i = std::max<index_t>(0, t - radius);
                         i < std::min(frames, t + radius + 1); ++i)
                        for (index_t j = std::max<index_t>(0, h - radius);
                             j < std::min(height, h + radius + 1); ++j)
                            for (index_t k = std::max<index_t>(0, w - radius);
                                 k < std::min(width, w + radius + 1); ++k)
                                sum += z.as<float>()[z.offset({0, 0, i, j, k})];
                    prediction.as<float>()[prediction.offset({0, 0, t, h, w})] = sum;
                }
        static_cast<void>(batch);
        static_cast<void>(channels);
    };
}

/// DDIM with as much fresh noise as ancestral sampling.
linear_scheduler stochastic() {
    schedule::ddim_options options = schedule::ddim_options::epsilon(6);
    options.eta = 1;
    return schedule::ddim(options);
}

/// What policy and loop together take at most on each rank, the collected result not counted.
std::vector<index_t> peaks_of_run(const latent_parallel_plan& plan, const sampling_case& c) {
    std::vector<index_t> out(static_cast<std::size_t>(plan.ranks));
    thread_team(plan.ranks).run([&](thread_communicator& comm) {
        counting_resource memory;
        const memory_source source{&memory, memory_space::host};
        latent_parallel policy(any_model(pointwise), comm, plan, kernel::host{}, source);
        static_cast<void>(run_loop(policy, c, comm.rank() == 0, source));
        out[static_cast<std::size_t>(comm.rank())] = memory.peak_bytes();
    });
    return out;
}

struct drawn {
    sampling_case c;
    latent_parallel_options options;
    int ranks;
};

/// Shapes, ranks, overlaps and layouts at random.
drawn draw_case(std::mt19937& random) {
    const auto draw = [&](int low, int high) {
        return std::uniform_int_distribution<int>(low, high)(random);
    };
    const auto name = schedule::names[static_cast<std::size_t>(draw(0, 5))];
    drawn out{{{draw(1, 2), draw(1, 3), draw(2, 7), 2 * draw(2, 5), 2 * draw(2, 5)},
               schedule::by_name(name, draw(4, 6)),
               static_cast<std::uint64_t>(draw(0, 1000))},
              {},
              draw(1, 5)};
    out.options.overlap = draw(0, 4 * (out.ranks - 1)) / 4.0;
    out.options.cores = draw(0, 1) ? partition::paper : partition::balanced;
    out.options.layout = layouts[static_cast<std::size_t>(draw(0, 2))];
    out.options.result_everywhere = draw(0, 1) == 1;
    std::shuffle(out.options.rotation.begin(), out.options.rotation.end(), random);
    out.options.rotation.resize(static_cast<std::size_t>(draw(1, 3)));
    return out;
}

}  // namespace

TEST_CASE("all layouts, simulated and on threads, agree bitwise, for every scheduler") {
    for (const std::string_view name : schedule::names) {
        const sampling_case c{{1, 4, 5, 8, 12}, schedule::by_name(name, 7), 11};
        for (const auto& [ranks, overlap] :
             {std::pair(2, 0.5), std::pair(3, 0.0), std::pair(4, 1.0)}) {
            latent_parallel_options options;
            options.overlap = overlap;
            options.layout = latent_layout::replicated;
            const closed_form model{0.7f, -0.3f, 4.0f};
            const std::vector<float> expected = simulated(c, options, ranks, model);
            for (const latent_layout layout : layouts) {
                options.layout = layout;
                CAPTURE(name, ranks, overlap, name_of(layout));
                CHECK(bitwise_equal(simulated(c, options, ranks, model), expected));
                const auto plan = plan_latent_parallel(c.problem(), options, ranks);
                bool equal = true;
                for (const rank_report& report : on_threads(plan, model, c)) {
                    equal = equal && bitwise_equal(report.latent, expected);
                }
                CHECK(equal);
            }
        }
    }
}

TEST_CASE("one part is the serial run, bitwise") {
    for (const std::string_view name : schedule::names) {
        const sampling_case c{{2, 3, 4, 6, 8}, schedule::by_name(name, 5), 3};
        const closed_form model{0.7f, -0.3f, 4.0f};
        for (const latent_layout layout : layouts) {
            latent_parallel_options options;
            options.overlap = 0;
            options.layout = layout;
            CHECK(bitwise_equal(simulated(c, options, 1, model), sample_serially(model, c)));
        }
    }
}

TEST_CASE("a pointwise denoiser gives the serial result to rounding; bytes are as planned") {
    std::mt19937 random(5);
    for (int trial = 0; trial < 60; ++trial) {
        const drawn d = draw_case(random);
        CAPTURE(trial, d.ranks, d.options.overlap, name_of(d.options.layout), d.c.schedule.name());
        const auto plan = plan_latent_parallel(d.c.problem(), d.options, d.ranks);
        const std::vector<float> serial = sample_serially(pointwise, d.c);
        const auto reports = on_threads(plan, pointwise, d.c);
        for (int rank = 0; rank < d.ranks; ++rank) {
            const rank_report& report = reports[static_cast<std::size_t>(rank)];
            if (rank == 0 || d.options.result_everywhere) {
                CHECK(relative_difference(report.latent, serial) < 2e-5);
            }
            CHECK(report.sent_and_received.bytes_sent == plan.bytes_sent_by(rank));
            CHECK(report.sent_and_received.bytes_received == plan.bytes_received_by(rank));
            CHECK(report.policy_bytes == plan.workspace_bytes(rank));
            CHECK(report.late_allocations == 0);
        }
    }
}

TEST_CASE("far from every cut, one prediction is that of the whole, bitwise") {
    std::mt19937 random(9);
    const auto draw = [&](int low, int high) {
        return std::uniform_int_distribution<int>(low, high)(random);
    };
    for (int trial = 0; trial < 40; ++trial) {
        const index_t radius = draw(0, 2);
        const int ranks = draw(2, 4);
        const axis along = all_axes[static_cast<std::size_t>(draw(0, 2))];
        sampling_case c{
            {1, 1, 6, 6, 6}, schedule::by_name("euler_flow", 4), static_cast<std::uint64_t>(trial)};
        latent_parallel_options options;
        options.overlap = draw(0, 2) / 4.0;
        options.rotation = {along};
        options.patch = {1, 1, 1};
        // Long enough that a core keeps a position farther than overlap + radius from both its
        // ends.
        c.extents[2 + index_of(along)] = ranks * (4 * radius + 9 + draw(0, 5));
        options.cores = partition::paper;
        const auto plan = plan_latent_parallel(c.problem(), options, ranks);
        const auto [whole_box, extent] = std::pair(
            box_of({c.extents[2], c.extents[3], c.extents[4]}), c.extents[2 + index_of(along)]);
        latent z(c.extents);
        philox_noise(c.seed).fill(z.view(), whole_box, {0, 0});
        const std::vector<sample_info> samples(1);
        const step_info info{samples, whole_box, whole_box.extent, {}};
        latent expected(c.extents);
        const any_model model = neighbourhood(radius);
        model(std::as_const(z).view(), info, expected.view(), {});
        latent got(c.extents);
        thread_team(ranks).run([&](thread_communicator& comm) {
            auto with_layout = options;
            with_layout.layout = latent_layout::replicated;
            latent_parallel policy(model, comm,
                                   plan_latent_parallel(c.problem(), with_layout, ranks));
            latent own(c.extents);
            policy(std::as_const(z).view(), info, own.view(), {});
            if (comm.rank() == 0) kernel::host{}.copy(own.view(), got.view());
        });
        const index_t margin = overlap_patches(extent, ranks, options.overlap) + radius;
        index_t untouched = 0;
        index_t changed = 0;
        for (index_t at = 0; at < extent; ++at) {
            index_t distance = extent;
            for (const latent_part& part : plan.cuts[0].parts) {
                if (part.window.empty() || part.core.begin(along) == 0) continue;
                const index_t cut = part.core.begin(along);
                distance = std::min(distance, at >= cut ? at - cut + 1 : cut - at);
            }
            const box layer = slab(whole_box, along, at, at + 1);
            latent a({1, 1, layer.extent[0], layer.extent[1], layer.extent[2]});
            latent b({1, 1, layer.extent[0], layer.extent[1], layer.extent[2]});
            kernel::host{}.copy(subview(const_latent_view(got.view()), layer), a.view());
            kernel::host{}.copy(subview(const_latent_view(expected.view()), layer), b.view());
            const bool same =
                std::memcmp(a.view().data, b.view().data, std::size_t(a.bytes())) == 0;
            if (distance > margin) {
                CHECK(same);
                ++untouched;
            } else {
                changed += same ? 0 : 1;
            }
        }
        CHECK(untouched > 0);
        // Without overlap a neighbourhood must show at the cuts: the test sees a difference if any.
        if (radius > 0 && options.overlap == 0) CHECK(changed > 0);
    }
}

TEST_CASE("narrow wires round at the owner: replicas never fork, and ranks do not matter") {
    const closed_form model{0.7f, -0.3f, 4.0f};
    for (const std::string_view name : {"euler_flow", "unipc_flow", "dpmpp2m_flow"}) {
        const sampling_case c{{1, 4, 6, 8, 8}, schedule::by_name(name, 6), 21};
        for (const latent_layout layout : layouts) {
            for (const dtype wire : {dtype::bf16, dtype::f16}) {
                latent_parallel_options options;
                options.layout = layout;
                options.wire_prediction = wire;
                options.wire_state = wire;
                const auto plan = plan_latent_parallel(c.problem(), options, 3);
                const auto reports = on_threads(plan, model, c);
                const std::vector<float> alone = simulated(c, options, 3, model);
                CAPTURE(name, name_of(layout), name_of(wire));
                for (int rank = 0; rank < 3; ++rank) {
                    const rank_report& report = reports[static_cast<std::size_t>(rank)];
                    CHECK(bitwise_equal(report.latent, alone));
                    CHECK(report.sent_and_received.bytes_sent == plan.bytes_sent_by(rank));
                }
                auto exact_options = options;
                exact_options.wire_prediction = exact_options.wire_state = dtype::f32;
                const double error =
                    relative_difference(alone, simulated(c, exact_options, 3, model));
                CHECK(error > 1e-6);  // something was rounded
                CHECK(error < 0.05);
            }
        }
    }
}

TEST_CASE("a scheduler that draws noise gives the same result on any number of ranks") {
    sampling_case c{{1, 2, 4, 6, 6}, stochastic(), 4};
    for (const latent_layout layout : layouts) {
        latent_parallel_options options;
        options.layout = layout;
        const auto reports =
            on_threads(plan_latent_parallel(c.problem(), options, 3), pointwise, c);
        CHECK(relative_difference(reports[2].latent, sample_serially(pointwise, c)) < 2e-5);
        CHECK(bitwise_equal(reports[2].latent, simulated(c, options, 3, pointwise)));
    }
}

TEST_CASE("idle ranks idle: more ranks than patches") {
    const sampling_case c{{1, 2, 2, 4, 4}, schedule::by_name("unipc_flow", 6), 8};
    for (const latent_layout layout : layouts) {
        latent_parallel_options options;
        options.layout = layout;
        options.overlap = 1.0;
        const auto plan = plan_latent_parallel(c.problem(), options, 5);
        REQUIRE(plan.cut_of(0).parts[4].window.empty());
        CHECK(plan.denoiser_calls() < 5 * c.schedule.steps());
        for (const rank_report& report : on_threads(plan, pointwise, c)) {
            CHECK(relative_difference(report.latent, sample_serially(pointwise, c)) < 2e-5);
        }
    }
}

TEST_CASE("a run that stops early, on the word of one rank, collects what it has") {
    sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("dpmpp2m_flow", 8), 8};
    for (const latent_layout layout : layouts) {
        latent_parallel_options options;
        options.layout = layout;
        const auto plan = plan_latent_parallel(c.problem(), options, 3);
        std::vector<rank_report> reports(3);
        thread_team(3).run([&](thread_communicator& comm) {
            sampling_case mine = c;
            if (comm.rank() == 1) mine.stop_after = 3;
            reports[std::size_t(comm.rank())] = sample_in_parallel(comm, plan, pointwise, mine);
        });
        sampling_case stopped = c;
        stopped.stop_after = 3;
        index_t sent = 0;
        for (const rank_report& report : reports) {
            sent += report.sent_and_received.bytes_sent;
            CHECK(relative_difference(report.latent, sample_serially(pointwise, stopped)) < 2e-5);
        }
        CHECK(sent == plan.bytes_after(3));
    }
}

TEST_CASE("one rank alone may have the callback, and stop all of them") {
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 6), 8};
    const auto plan = plan_latent_parallel(c.problem(), {}, 3);
    for (int with = 0; with < 3; ++with) {
        std::array<index_t, 3> steps{};
        bool finished = true;
        thread_team(3).run([&](thread_communicator& comm) {
            latent_parallel policy(any_model(pointwise), comm, plan);
            loop::serial loop(policy, c.schedule, c.extents);
            const philox_noise noise(1);
            loop.start(noise);
            if (comm.rank() == with) {
                finished = loop.run(noise, [](index_t step) { return step < 2; });
            } else {
                loop.run(noise);
            }
            steps[std::size_t(comm.rank())] = loop.step();
        });
        CHECK_FALSE(finished);
        CHECK(steps == std::array<index_t, 3>{3, 3, 3});
    }
}

TEST_CASE("a rank that never started, or collects into another latent, ends all of them") {
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 4), 8};
    for (const latent_layout layout : layouts) {
        latent_parallel_options options;
        options.layout = layout;
        const auto plan = plan_latent_parallel(c.problem(), options, 3);
        for (const std::string& message : messages_of(3, [&](thread_communicator& comm) {
                 latent_parallel policy(any_model(pointwise), comm, plan);
                 loop::serial loop(policy, c.schedule, c.extents);
                 latent out(c.extents);
                 if (comm.rank() > 0) loop.start(philox_noise(1));
                 loop.collect(out.view());
             })) {
            CHECK_THAT(message, ContainsSubstring("call start first"));
        }
        for (const std::string& message : messages_of(3, [&](thread_communicator& comm) {
                 latent_parallel policy(any_model(pointwise), comm, plan);
                 loop::serial loop(policy, c.schedule, c.extents);
                 loop.start(philox_noise(1));
                 latent out({1, 2, comm.rank() == 0 ? 5 : 4, 7, 6});
                 loop.collect(out.view());
             })) {
            CHECK_THAT(message, ContainsSubstring("to collect one of [1,2,4,6,6]"));
        }
    }
}

TEST_CASE(
    "in sharded a rank takes its window twice, its cores and its messages, by its memory "
    "resource") {
    const sampling_case c{{1, 16, 20, 16, 24}, schedule::by_name("unipc_flow", 6), 8};
    latent_parallel_options options;
    options.layout = latent_layout::sharded;
    options.result_everywhere = false;
    const auto plan = plan_latent_parallel(c.problem(), options, 4);
    const auto peaks = peaks_of_run(plan, c);
    const index_t element = 16 * 4;
    for (int rank = 0; rank < 4; ++rank) {
        index_t window = 0;
        index_t core = 0;
        for (const latent_cut& cut : plan.cuts) {
            window = std::max(window, cut.parts[std::size_t(rank)].window.volume());
            core = std::max(core, cut.parts[std::size_t(rank)].core.volume());
        }
        index_t messages = 0;
        for (const index_t bytes : plan.workspace(rank).messages) messages += bytes;
        const index_t history = plan.problem.history_size();
        CHECK(plan.workspace_bytes(rank) == window * element + messages);
        CHECK(peaks[std::size_t(rank)] == (2 * window + (1 + history) * core) * element + messages);
        // What arrives for the next window or core, and this core packed for others.
        CHECK(messages <= (2 * window + 2 * history * core) * element + 64 * 64);
    }
}

TEST_CASE("in sharded nobody holds the whole latent: eight ranks take less than it, all included") {
    const sampling_case c{{1, 16, 32, 32, 32}, schedule::by_name("euler_flow", 6), 8};
    latent_parallel_options options;
    options.layout = latent_layout::sharded;
    options.overlap = 0.25;
    options.result_everywhere = false;
    const auto plan = plan_latent_parallel(c.problem(), options, 8);
    const index_t latent_bytes = 16 * 32 * 32 * 32 * 4;
    for (const index_t peak : peaks_of_run(plan, c)) CHECK(peak < latent_bytes);
}

TEST_CASE("plans that differ between ranks are refused on all of them with one message") {
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 4), 8};
    std::vector<std::string> messages(3);
    thread_team(3).run([&](thread_communicator& comm) {
        latent_parallel_options options;
        options.overlap = comm.rank() == 2 ? 0.75 : 0.5;
        metered counted(comm.duplicate());
        try {
            latent_parallel policy(any_model(pointwise), counted,
                                   plan_latent_parallel(c.problem(), options, 3));
        } catch (const usage_error& error) {
            messages[std::size_t(comm.rank())] = error.what();
        }
        if (counted.account().total().bytes_sent != 0) messages[std::size_t(comm.rank())] = "sent";
    });
    CHECK_THAT(messages[0], ContainsSubstring("overlap=0.75") && ContainsSubstring("overlap=0.5 "));
    CHECK(messages[1] == messages[0]);
    CHECK(messages[2] == messages[0]);
}

TEST_CASE("a plan for another number of ranks is refused") {
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 4), 8};
    self_communicator alone;
    CHECK_THROWS_WITH(
        latent_parallel(any_model(pointwise), alone, plan_latent_parallel(c.problem(), {}, 3)),
        ContainsSubstring("for 3 ranks"));
}

TEST_CASE("what the model throws on one rank is thrown on all") {
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 4), 8};
    for (const latent_layout layout : layouts) {
        latent_parallel_options options;
        options.layout = layout;
        const auto plan = plan_latent_parallel(c.problem(), options, 3);
        std::vector<std::string> messages(3);
        thread_team(3).run([&](thread_communicator& comm) {
            const int rank = comm.rank();
            const any_model model = [rank](const_latent_view z, const step_info& info,
                                           latent_view p, stream_ref s) {
                if (rank == 1 && info.samples[0].step == 2)
                    throw std::runtime_error("no memory left");
                pointwise(z, info, p, s);
            };
            try {
                static_cast<void>(sample_in_parallel(comm, plan, model, c));
            } catch (const std::exception& error) {
                messages[std::size_t(rank)] = error.what();
            }
        });
        for (const std::string& message : messages)
            CHECK_THAT(message, ContainsSubstring("no memory left"));
    }
}

TEST_CASE("a loop of the engine's own calls the denoiser as it would call the model") {
    const sampling_case c{{2, 2, 4, 6, 6}, schedule::by_name("euler_flow", 4), 8};
    latent_parallel_options options;
    options.layout = latent_layout::replicated;
    const auto plan = plan_latent_parallel(c.problem(), options, 3);
    std::array<std::vector<float>, 3> results;
    thread_team(3).run([&](thread_communicator& comm) {
        latent_parallel denoiser(any_model(pointwise), comm, plan);
        const extents3 whole{4, 6, 6};
        latent z(c.extents);
        latent prediction(c.extents);
        philox_noise(c.seed).fill(z.view(), box_of(whole), {0, 0});
        std::vector<sample_info> samples(2);
        for (index_t i = 0; i < c.schedule.steps(); ++i) {
            const auto n = static_cast<std::size_t>(i);
            for (auto& sample : samples) {
                sample = {.step = i,
                          .timestep = c.schedule.timesteps()[n],
                          .sigma = c.schedule.sigmas()[n]};
            }
            denoiser(std::as_const(z).view(), {samples, box_of(whole), whole}, prediction.view(),
                     {});
            const step_state state{z.view(), std::as_const(prediction).view()};
            c.schedule.step(i, state, kernel::host{});
        }
        const auto values = z.elements<float>();
        results[std::size_t(comm.rank())].assign(values.begin(), values.end());
    });
    CHECK(results[1] == results[0]);
    CHECK(results[2] == results[0]);
    CHECK(relative_difference(results[0], sample_serially(pointwise, c)) < 2e-5);
}

TEST_CASE("conditions and per-frame timesteps are cut with the latent") {
    const std::array<index_t, 5> extents{1, 1, 6, 4, 4};
    const sampling_case c{extents, schedule::by_name("euler_flow", 3), 8};
    // The prediction is the condition plus the frame's timestep: the policy must return it
    // unchanged.
    const any_model model = [](const_latent_view, const step_info& info, latent_view p,
                               stream_ref) {
        for (index_t t = 0; t < p.extents[2]; ++t)
            for (index_t h = 0; h < p.extents[3]; ++h)
                for (index_t w = 0; w < p.extents[4]; ++w)
                    p.as<float>()[p.offset({0, 0, t, h, w})] =
                        info.conditions[0].as<float>()[info.conditions[0].offset({0, 0, t, h, w})] +
                        info.samples[0].frame_timesteps[std::size_t(t)];
    };
    latent z(extents);
    latent condition(extents);
    const box whole = box_of({6, 4, 4});
    philox_noise(1).fill(z.view(), whole, {0, 0});
    philox_noise(2).fill(condition.view(), whole, {0, 0});
    const std::vector<float> frames{1, 2, 3, 4, 5, 6};
    for (index_t step = 0; step < 3; ++step) {
        std::vector<sample_info> samples(1);
        samples[0].step = step;
        samples[0].frame_timesteps = frames;
        const std::array<const_latent_view, 1> conditions{condition.view()};
        const step_info info{samples, whole, whole.extent, conditions};
        latent expected(extents);
        model(z.view(), info, expected.view(), {});
        std::array<bool, 2> equal{};
        thread_team(2).run([&](thread_communicator& comm) {
            latent_parallel_options options;
            options.layout = latent_layout::replicated;
            options.overlap = 0;
            latent_parallel policy(model, comm, plan_latent_parallel(c.problem(), options, 2));
            latent got(extents);
            policy(std::as_const(z).view(), info, got.view(), {});
            equal[std::size_t(comm.rank())] =
                std::memcmp(got.view().data, expected.view().data, std::size_t(got.bytes())) == 0;
        });
        CHECK((equal[0] && equal[1]));
    }
}

TEST_CASE("a loop that the plan was not made for is refused on every rank") {
    const auto euler = schedule::by_name("euler_flow", 4);
    const auto plan = plan_latent_parallel(latent_problem::of({1, 2, 4, 6, 6}, euler), {}, 3);
    const auto refused = [&](const std::array<index_t, 5>& extents, const linear_scheduler& other) {
        for (const std::string& message : messages_of(3, [&](thread_communicator& comm) {
                 latent_parallel policy(any_model(pointwise), comm, plan);
                 loop::serial loop(policy, other, extents);
             })) {
            CHECK_THAT(message, ContainsSubstring("the plan was made for"));
        }
    };
    refused({1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 12));
    refused({1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 3));
    refused({1, 2, 4, 6, 6}, schedule::by_name("unipc_flow", 4));
    refused({1, 2, 4, 6, 8}, euler);
    refused({2, 2, 4, 6, 6}, euler);
}

TEST_CASE("ranks whose schedules or noise differ are refused, all with one message") {
    const auto problem = latent_problem::of({1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 4));
    const auto schedules = messages_of(3, [&](thread_communicator& comm) {
        latent_parallel policy(any_model(pointwise), comm, plan_latent_parallel(problem, {}, 3));
        loop::serial loop(policy, schedule::by_name(comm.rank() == 1 ? "ddim_v" : "euler_flow", 4),
                          {1, 2, 4, 6, 6});
    });
    CHECK_THAT(schedules[0], ContainsSubstring("ddim_v") && ContainsSubstring("euler_flow"));
    CHECK(schedules[1] == schedules[0]);
    const auto seeds = messages_of(3, [&](thread_communicator& comm) {
        latent_parallel policy(any_model(pointwise), comm, plan_latent_parallel(problem, {}, 3));
        loop::serial loop(policy, schedule::by_name("euler_flow", 4), {1, 2, 4, 6, 6});
        loop.start(philox_noise(comm.rank() == 2 ? 5 : 4));
    });
    // Names, timesteps and sigmas are the same here, and no step is.
    const auto coefficients = messages_of(3, [&](thread_communicator& comm) {
        auto options = schedule::ddim_options::epsilon(4);
        options.eta = comm.rank() == 1 ? 0.7 : 0.3;
        const linear_scheduler ddim = schedule::ddim(options);
        latent_parallel policy(
            any_model(pointwise), comm,
            plan_latent_parallel(latent_problem::of({1, 2, 4, 6, 6}, ddim), {}, 3));
        loop::serial loop(policy, ddim, {1, 2, 4, 6, 6});
    });
    CHECK_THAT(coefficients[0], ContainsSubstring("the ranks disagree on the loop"));
    CHECK(coefficients[1] == coefficients[0]);
    CHECK(coefficients[2] == coefficients[0]);
    CHECK_THAT(seeds[0], ContainsSubstring("noise source"));
    CHECK(seeds[1] == seeds[0]);
    CHECK(seeds[2] == seeds[0]);
}

TEST_CASE("whatever throws on one rank, a callback or its memory, ends all of them") {
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 4), 8};
    const auto plan = plan_latent_parallel(c.problem(), {}, 3);
    for (const std::string& message : messages_of(3, [&](thread_communicator& comm) {
             latent_parallel policy(any_model(pointwise), comm, plan);
             loop::serial loop(policy, c.schedule, c.extents);
             loop.start(philox_noise(1));
             loop.run(philox_noise(1), [&](index_t step) {
                 if (step == 1 && comm.rank() == 1)
                     throw std::runtime_error("the preview window is gone");
                 return true;
             });
         })) {
        CHECK_THAT(message, ContainsSubstring("the preview window is gone"));
    }
    const auto out_of_memory = messages_of(3, [&](thread_communicator& comm) {
        memory_source source;
        if (comm.rank() == 2) source.resource = std::pmr::null_memory_resource();
        latent_parallel policy(any_model(pointwise), comm, plan, kernel::host{}, source);
        loop::serial loop(policy, c.schedule, c.extents);
    });
    for (const std::string& message : out_of_memory) CHECK_FALSE(message.empty());
}

TEST_CASE("a latent in bf16 is sampled alike in every layout") {
    const std::array<index_t, 5> extents{1, 2, 4, 6, 6};
    const auto schedule = schedule::by_name("unipc_flow", 5);
    const auto problem = latent_problem::of(extents, schedule, dtype::bf16);
    const any_model model = [](const_latent_view z, const step_info&, latent_view p, stream_ref) {
        kernel::host{}.linear_combination(std::array{z}, std::array{0.5f}, std::array{p});
    };
    std::vector<std::vector<std::uint16_t>> results;
    for (const latent_layout layout : layouts) {
        latent_parallel_options options;
        options.layout = layout;
        const auto plan = plan_latent_parallel(problem, options, 3);
        std::vector<std::uint16_t> result(288);
        thread_team(3).run([&](thread_communicator& comm) {
            latent_parallel policy(model, comm, plan);
            loop::serial loop(policy, schedule, extents, kernel::host{}, dtype::bf16);
            loop.start(philox_noise(3));
            loop.run(philox_noise(3));
            latent out(extents, dtype::bf16);
            loop.collect(out.view());
            if (comm.rank() == 1)
                std::memcpy(result.data(), out.view().data, std::size_t(out.bytes()));
        });
        results.push_back(std::move(result));
    }
    CHECK(results[0] == results[1]);
    CHECK(results[0] == results[2]);
    CHECK(results[0] != std::vector<std::uint16_t>(288));
}

TEST_CASE("where the ranks step what they stitch, both are one pass; the bits are those of two") {
    const sampling_case c{{1, 2, 6, 8, 10}, schedule::by_name("unipc_flow", 7), 8};
    for (const latent_layout layout : layouts) {
        CAPTURE(name_of(layout));
        latent_parallel_options options;
        options.layout = layout;
        options.result_everywhere = true;
        const auto plan = plan_latent_parallel(c.problem(), options, 3);
        std::array<std::vector<float>, 3> run, driven;
        std::array<stitch_count, 3> counts;
        thread_team(3).run([&](thread_communicator& comm) {
            const auto rank = static_cast<std::size_t>(comm.rank());
            const counting_kernels kernels{{}, &counts[rank]};
            const philox_noise noise(3);
            latent out(c.extents);
            const auto sample = [&](std::vector<float>& into, bool by_run) {
                latent_parallel policy(any_model(pointwise), comm, plan, kernels);
                loop::serial loop(policy, c.schedule, c.extents, kernels);
                loop.start(noise);
                if (by_run) {
                    loop.run(noise);
                } else {
                    while (!loop.done()) {
                        const auto next = loop.next_request();
                        policy(next.z, next.info, next.prediction, {});
                        loop.advance(noise);
                    }
                }
                loop.collect(out.view());
                const auto values = std::as_const(out).elements<float>();
                into.assign(values.begin(), values.end());
            };
            sample(run[rank], true);
            const stitch_count once = counts[rank];
            const bool steps = layout != latent_layout::central || comm.rank() == 0;
            const bool is_fused = layout != latent_layout::replicated;
            // A rank without a core at a step has nothing to stitch there.
            EXPECT((once.fused > 0) == (is_fused && steps));
            EXPECT((once.alone > 0) == !is_fused);
            sample(driven[rank], false);
            EXPECT(counts[rank].fused == once.fused);
        });
        for (std::size_t rank = 0; rank < 3; ++rank) {
            CHECK(run[rank] == driven[rank]);
            CHECK(run[rank] == run[0]);
        }
    }
}

TEST_CASE("central refuses what it does not carry to the other ranks") {
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 4), 8};
    latent_parallel_options options;
    options.layout = latent_layout::central;
    const auto plan = plan_latent_parallel(c.problem(), options, 2);
    const std::vector<float> frames(4, 1.0f);
    const auto messages = messages_of(2, [&](thread_communicator& comm) {
        latent_parallel policy(any_model(pointwise), comm, plan);
        const box held = plan.held(0, comm.rank());
        latent z({1, 2, held.extent[0], held.extent[1], held.extent[2]});
        latent p({1, 2, held.extent[0], held.extent[1], held.extent[2]});
        std::vector<sample_info> samples(1);
        if (comm.rank() == 0) samples[0].frame_timesteps = frames;
        policy(std::as_const(z).view(), {samples, held, {4, 6, 6}, {}}, p.view(), {});
    });
    for (const std::string& message : messages)
        CHECK_THAT(message, ContainsSubstring("timesteps of frames"));
}

TEST_CASE("calls that do not fit the plan say what would") {
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 4), 8};
    latent_parallel_options options;
    options.layout = latent_layout::replicated;
    options.parts = 2;
    self_communicator comm;
    latent z(c.extents);
    const box whole = box_of({4, 6, 6});
    const auto call = [&](std::vector<sample_info> samples, const box& window) {
        self_communicator fresh;
        latent_parallel policy(any_model(pointwise), fresh,
                               plan_latent_parallel(c.problem(), options, 1));
        latent out(c.extents);
        policy(std::as_const(z).view(), {samples, window, whole.extent, {}}, out.view(), {});
    };
    CHECK_THROWS_WITH(call({}, whole), ContainsSubstring("0 samples of a batch of 1"));
    sample_info late;
    late.step = 4;
    CHECK_THROWS_WITH(call({late}, whole), ContainsSubstring("step 4"));
    CHECK_THROWS_WITH(call({sample_info{}}, slab(whole, axis::t, 0, 2)),
                      ContainsSubstring("set info.window to all of the latent"));
    CHECK_THROWS_WITH(call({sample_info{}, sample_info{}}, whole),
                      ContainsSubstring("2 samples of a batch of 1"));
    const std::vector<float> frames(2, 1.0f);
    sample_info uneven;
    uneven.frame_timesteps = frames;
    CHECK_THROWS_WITH(call({uneven}, whole),
                      ContainsSubstring("2 frame_timesteps were given for the 4 frames"));
    latent condition({1, 3, 4, 6, 5});
    const std::array<const_latent_view, 1> conditions{condition.view()};
    latent narrow(c.extents, dtype::bf16);
    const auto run = [&](const latent& from, latent& to,
                         std::span<const const_latent_view> beside) {
        self_communicator fresh;
        latent_parallel policy(any_model(pointwise), fresh,
                               plan_latent_parallel(c.problem(), options, 1));
        const std::vector<sample_info> samples(1);
        policy(from.view(), {samples, whole, whole.extent, beside}, to.view(), {});
    };
    latent out(c.extents);
    CHECK_THROWS_WITH(run(z, out, conditions), ContainsSubstring("a condition of [1,3,4,6,5]"));
    CHECK_THROWS_WITH(run(narrow, out, {}),
                      ContainsSubstring("in bf16") && ContainsSubstring("f32 planned"));
    CHECK_THROWS_WITH(run(z, narrow, {}), ContainsSubstring("channels in f32"));
    const std::array<index_t, 5> two{2, 2, 4, 6, 6};
    latent_parallel policy(any_model(pointwise), comm,
                           plan_latent_parallel(latent_problem::of(two, c.schedule), options, 1));
    const std::vector<sample_info> mixed{sample_info{}, late};
    const latent from(two);
    latent to(two);
    CHECK_THROWS_WITH(policy(from.view(), {mixed, whole, whole.extent, {}}, to.view(), {}),
                      ContainsSubstring("mixes"));
}

TEST_CASE("a policy and its loops may take their memory from different sources, in every layout") {
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("unipc_flow", 4), 8};
    for (const latent_layout layout : layouts) {
        latent_parallel_options options;
        options.layout = layout;
        const auto plan = plan_latent_parallel(c.problem(), options, 2);
        std::array<std::vector<float>, 2> results;
        std::array<index_t, 2> left{};
        thread_team(2).run([&](thread_communicator& comm) {
            const auto rank = static_cast<std::size_t>(comm.rank());
            counting_resource kept;
            latent_parallel policy(any_model(pointwise), comm, plan, kernel::host{},
                                   {&kept, memory_space::host});
            for (int times = 0; times < 2; ++times) {
                counting_resource own;
                {
                    loop::serial loop(policy, c.schedule, c.extents, kernel::host{}, dtype::f32,
                                      {&own, memory_space::host});
                    const philox_noise noise(c.seed);
                    loop.start(noise);
                    loop.run(noise);
                    results[rank].assign(4 * 6 * 6 * 2, 0);
                    loop.collect(make_view(results[rank].data(), c.extents));
                }
                // What remains would be in the hands of the policy, behind the loop's back.
                left[rank] += own.bytes_in_use();
            }
        });
        CHECK(left == std::array<index_t, 2>{});
        CHECK(results[0] == results[1]);
        CHECK(relative_difference(results[0], sample_serially(pointwise, c)) < 2e-5);
    }
}
