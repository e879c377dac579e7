// SPDX-License-Identifier: Apache-2.0
// The plan of LatentParallel: cuts, weights, bytes, and the figures of the paper.
#include <latpar/core/error.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/step/latent_parallel_plan.hpp>

#include <support/catch.hpp>

#include <cmath>
#include <cstdio>
#include <random>
#include <string>

using namespace latpar;

namespace {

/// Wan 2.1 at 480x832 in 60 steps, as in the paper's table.
latent_problem wan_problem(index_t latent_frames, const std::string& scheduler = "euler_flow") {
    return latent_problem::of({1, 16, latent_frames, 60, 104}, schedule::by_name(scheduler, 60));
}

latent_parallel_options with(double overlap, latent_layout layout,
                             partition cores = partition::paper) {
    latent_parallel_options out;
    out.overlap = overlap;
    out.layout = layout;
    out.cores = cores;
    return out;
}

std::string to_digits(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f", value);
    return text;
}

double mebibytes(index_t bytes) {
    return static_cast<double>(bytes) / (1024.0 * 1024.0);
}

}  // namespace

TEST_CASE("the paper's table comes out to the last digit") {
    struct row {
        index_t frames;
        double overlap;
        const char* megabytes;
        const char* reduction;
        double model_parallel;
    };
    for (const row& r :
         {row{13, 1.0, "1811.88", "96.87", 57950.17}, row{21, 1.0, "2912.81", "96.87", 93050.17},
          row{13, 0.5, "1354.34", "97.66", 57950.17}, row{21, 0.5, "2191.29", "97.65", 93050.17}}) {
        const auto plan =
            plan_latent_parallel(wan_problem(r.frames), with(r.overlap, latent_layout::central), 4);
        const double megabytes = mebibytes(plan.paper_bytes());
        CHECK(to_digits(megabytes) == r.megabytes);
        CHECK(to_digits(100.0 * (1.0 - megabytes / r.model_parallel)) == r.reduction);
    }
}

TEST_CASE("weights ramp over the overlap and sum to one") {
    latent_problem problem = wan_problem(13);
    problem.steps = 1;
    problem.live_history.clear();
    const auto plan = plan_latent_parallel(problem, with(0.5, latent_layout::replicated), 4);
    const latent_cut& cut = plan.cuts[0];
    // Cores [0,4) [4,8) [8,12) [12,13), windows [0,6) [2,10) [6,13) [10,13).
    REQUIRE(cut.parts[1].window == box{{2, 0, 0}, {8, 60, 104}});
    // Position 2 is in the core of part 0 (weight 1) and the front of part 1 (weight 1/2).
    CHECK(cut.parts[1].weights[0] == static_cast<float>(0.5 / 1.5));
    CHECK(cut.parts[0].weights[2] == static_cast<float>(1.0 / 1.5));
    // Position 3: 1 and 2/2.
    CHECK(cut.parts[1].weights[1] == 0.5f);
    // Position 11: core of part 2 (1), rear of nothing else but the front of part 3: d = 2, 2/2.
    CHECK(cut.parts[3].weights[1] == 0.5f);
    // Position 12: core of part 3 (1); the rear overlap of part 2 is clamped to one position: 1/1.
    CHECK(cut.parts[2].weights.back() == 0.5f);
    CHECK(cut.parts[3].weights.back() == 0.5f);
    for (const latent_cut& c : plan.cuts) {
        std::vector<double> sums(static_cast<std::size_t>(plan.problem.extents[index_of(c.along)]),
                                 0.0);
        for (const latent_part& part : c.parts) {
            for (std::size_t i = 0; i < part.weights.size(); ++i) {
                sums[static_cast<std::size_t>(part.window.begin(c.along)) + i] += part.weights[i];
            }
        }
        for (const double sum : sums) CHECK(sum == Approx(1.0).margin(1e-6));
    }
}

TEST_CASE("weights count latent positions, not patches") {
    latent_problem problem = wan_problem(1);
    problem.steps = 1;
    problem.live_history.clear();
    const auto plan = plan_latent_parallel(problem, with(0.5, latent_layout::replicated), 4);
    // T has a single patch: the first cut is along H, 30 patches, cores of 8, overlap 4 patches = 8
    // rows.
    REQUIRE(plan.cuts[0].along == axis::h);
    REQUIRE(plan.cuts[0].parts[1].window == box{{0, 8, 0}, {1, 32, 104}});
    // Front weights k/8 against a core weight of 1.
    for (int k = 1; k <= 8; ++k) {
        CHECK(plan.cuts[0].parts[1].weights[static_cast<std::size_t>(k - 1)] ==
              static_cast<float>((k / 8.0) / (1.0 + k / 8.0)));
    }
}

TEST_CASE("steps rotate over the axes that have more than one patch") {
    const auto axes = [](const latent_parallel_plan& plan) {
        std::string out;
        for (index_t i = 0; i < 4; ++i) out += name_of(plan.cut_of(i).along);
        return out;
    };
    CHECK(axes(plan_latent_parallel(wan_problem(13), with(0.5, latent_layout::central), 4)) ==
          "THWT");
    CHECK(axes(plan_latent_parallel(wan_problem(1), with(0.5, latent_layout::central), 4)) ==
          "HWHW");
    auto options = with(0.5, latent_layout::central);
    options.rotation = {axis::w, axis::t};
    CHECK(axes(plan_latent_parallel(wan_problem(13), options, 4)) == "WTWT");
}

TEST_CASE("sharded sends less than half of the paper's accounting, with bf16 less than a quarter") {
    for (const index_t frames : {13, 21}) {
        auto options = with(0.5, latent_layout::sharded);
        options.result_everywhere = false;
        const auto plan = plan_latent_parallel(wan_problem(frames), options, 4);
        CHECK(static_cast<double>(plan.bytes()) < 0.5 * static_cast<double>(plan.paper_bytes()));
        options.wire_prediction = options.wire_state = dtype::bf16;
        const auto narrow = plan_latent_parallel(wan_problem(frames), options, 4);
        CHECK(static_cast<double>(narrow.bytes()) < 0.25 * static_cast<double>(plan.paper_bytes()));
    }
}

TEST_CASE("automatic picks the layout whose busiest rank moves least") {
    for (const char* name : {"euler_flow", "unipc_flow", "dpmpp2m_flow"}) {
        const auto problem = wan_problem(21, name);
        const auto chosen = plan_latent_parallel(problem, with(0.5, latent_layout::automatic), 4);
        for (const auto layout :
             {latent_layout::central, latent_layout::replicated, latent_layout::sharded}) {
            CHECK(chosen.busiest_bytes() <=
                  plan_latent_parallel(problem, with(0.5, layout), 4).busiest_bytes());
        }
    }
    auto whole_only = wan_problem(21);
    whole_only.elementwise = false;
    const auto plan = plan_latent_parallel(whole_only, with(0.5, latent_layout::automatic), 4);
    CHECK(plan.options.layout != latent_layout::sharded);
}

TEST_CASE("every byte that a rank sends is received, and every window can be filled") {
    std::mt19937 random(7);
    const auto draw = [&](int low, int high) {
        return std::uniform_int_distribution<int>(low, high)(random);
    };
    for (int trial = 0; trial < 200; ++trial) {
        const int ranks = draw(1, 6);
        latent_problem problem;
        problem.channels = problem.prediction_channels = draw(1, 4);
        problem.extents = {draw(1, 9), 2 * draw(1, 8), 2 * draw(1, 8)};
        problem.steps = draw(1, 7);
        for (index_t i = 0; i < problem.steps; ++i) problem.live_history.push_back({i > 0, i > 1});
        if (ranks > 1 && problem.extents == extents3{1, 2, 2}) continue;
        const auto layout =
            std::array{latent_layout::central, latent_layout::replicated,
                       latent_layout::sharded}[static_cast<std::size_t>(draw(0, 2))];
        const auto options = with(draw(0, 4 * (ranks - 1)) / 4.0, layout,
                                  draw(0, 1) ? partition::paper : partition::balanced);
        const auto plan = plan_latent_parallel(problem, options, ranks);
        index_t sent = 0;
        index_t received = 0;
        for (int rank = 0; rank < ranks; ++rank) {
            sent += plan.bytes_sent_by(rank);
            received += plan.bytes_received_by(rank);
            CHECK(plan.workspace_bytes(rank) >= 0);
        }
        CHECK(sent == plan.bytes());
        CHECK(received == plan.bytes());
        // The stepped boxes are disjoint unless replicated, and cover the latent.
        for (index_t i = 0; i < problem.steps; ++i) {
            index_t covered = 0;
            for (int rank = 0; rank < ranks; ++rank) covered += plan.stepped(i, rank).volume();
            const index_t copies = plan.options.layout == latent_layout::replicated ? ranks : 1;
            CHECK(covered == copies * volume_of(problem.extents));
        }
    }
}

TEST_CASE("a plan that cannot be is refused with its values and a remedy") {
    const auto plan = [](auto&& change, int ranks = 4) {
        latent_problem problem = wan_problem(13);
        latent_parallel_options options;
        change(problem, options);
        return plan_latent_parallel(problem, options, ranks);
    };
    CHECK_THROWS_WITH(plan([](auto& p, auto&) {
                          p.extents = {13, 61, 104};
                      }),
                      ContainsSubstring("61 along H") && ContainsSubstring("such as 62"));
    CHECK_THROWS_WITH(plan([](auto&, auto& o) { o.overlap = 3.5; }), ContainsSubstring("0 to 3"));
    CHECK_THROWS_WITH(plan([](auto&, auto& o) { o.parts = 3; }), ContainsSubstring("3 parts"));
    CHECK_THROWS_WITH(plan([](auto&, auto& o) { o.rotation.clear(); }),
                      ContainsSubstring("T, H, W"));
    CHECK_THROWS_WITH(plan([](auto&, auto& o) { o.wire_state = dtype::i32; }),
                      ContainsSubstring("i32"));
    CHECK_THROWS_WITH(plan([](auto& p, auto&) {
                          p.extents = {1, 2, 2};
                      }),
                      ContainsSubstring("single patch"));
    CHECK_THROWS_WITH(plan([](auto& p, auto& o) {
                          p.elementwise = false;
                          o.layout = latent_layout::sharded;
                      }),
                      ContainsSubstring("not elementwise") && ContainsSubstring("replicated"));
    CHECK_THROWS_AS(plan([](auto& p, auto&) { p.steps = 0; }), usage_error);
    CHECK_THROWS_AS(plan([](auto&, auto&) {}, 0), usage_error);
    CHECK_NOTHROW(plan(
        [](auto& p, auto& o) {
            p.extents = {1, 2, 2};
            o.overlap = 0;
        },
        1));
}

TEST_CASE("equal plans have equal fingerprints, others do not") {
    const auto problem = wan_problem(13);
    auto options = with(0.5, latent_layout::sharded);
    const auto print = plan_latent_parallel(problem, options, 4).fingerprint();
    CHECK(print == plan_latent_parallel(problem, options, 4).fingerprint());
    options.wire_state = dtype::bf16;
    CHECK(print != plan_latent_parallel(problem, options, 4).fingerprint());
    options.wire_state = dtype::f32;
    // Overlaps that six digits do not tell apart, but that cut 12 patches differently.
    options.overlap = 1.0 / 3;
    const auto third = plan_latent_parallel(problem, options, 4).fingerprint();
    options.overlap = 0.333333;
    CHECK(third != plan_latent_parallel(problem, options, 4).fingerprint());
    options.overlap = 0.25;
    CHECK(print != plan_latent_parallel(problem, options, 4).fingerprint());
}

TEST_CASE("a prediction of other channels cannot be stepped apart") {
    latent_problem problem = wan_problem(13);
    problem.prediction_channels = 32;
    CHECK_THROWS_WITH(plan_latent_parallel(problem, with(0.5, latent_layout::sharded), 4),
                      ContainsSubstring("32 channels") && ContainsSubstring("replicated"));
    CHECK(plan_latent_parallel(problem, with(0.5, latent_layout::automatic), 4).options.layout !=
          latent_layout::sharded);
    CHECK_NOTHROW(plan_latent_parallel(problem, with(0.5, latent_layout::central), 4));
}

TEST_CASE("one part takes any overlap and has none; nothing travels wider than the latent") {
    latent_problem problem = wan_problem(13);
    const auto alone = plan_latent_parallel(problem, with(0.5, latent_layout::automatic), 1);
    CHECK(alone.options.overlap == 0);
    CHECK(alone.bytes() == 0);
    CHECK(alone.critical_fraction() == 1);
    problem.type = dtype::bf16;
    const auto plan = plan_latent_parallel(problem, with(0.5, latent_layout::sharded), 4);
    CHECK(plan.options.wire_state == dtype::bf16);
    CHECK(plan.options.wire_prediction == dtype::bf16);
}

TEST_CASE("hundreds of ranks and latents of any size are planned, or refused, at once") {
    for (const auto layout : {latent_layout::automatic, latent_layout::replicated}) {
        const auto plan = plan_latent_parallel(wan_problem(21), with(0.5, layout), 512);
        index_t largest = 0;
        for (int rank = 0; rank < plan.ranks; ++rank)
            largest = std::max(largest, plan.workspace_bytes(rank));
        CHECK(largest > 0);
        CHECK(plan.cut_of(0).parts[511].window.empty());
    }
    latent_problem endless = wan_problem(21);
    endless.extents = {999999, 999998, 999998};
    CHECK_THROWS_WITH(plan_latent_parallel(endless, with(0.5, latent_layout::automatic), 4),
                      ContainsSubstring("more bytes than can be counted"));
    CHECK_THROWS_WITH(
        plan_latent_parallel(wan_problem(21), with(0.5, latent_layout::automatic), 1025),
        ContainsSubstring("at most 1024"));
}
