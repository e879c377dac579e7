// SPDX-License-Identifier: Apache-2.0
// latpar-generate along the axis stage: its files, its report, how it stops and goes on.
#include <latpar/comm/self.hpp>
#include <latpar/loop/dual_paral.hpp>
#include <latpar/schedule/coordinated_noise.hpp>

#include <examples/generate_run.hpp>
#include <generate/job.hpp>
#include <support/recorded.hpp>
#include <wan/transformer.hpp>

#include <algorithm>

using latpar::index_t;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// A video of the tiny model in blocks of 3 latents that see 2 of each neighbour.
std::string video(const workplace& at, const std::string& mesh, index_t latents = 12,
                  const std::string& more = "") {
    return at.tiny("16x" + std::to_string(latents) + "x8x12") +
           "--block-latents 3 --cat-latents 2 --mesh " + mesh + ' ' + more + ' ';
}

/// Frames [first, first + count) of a latent of 16 channels of 8x12.
std::vector<float> frames_of(const std::vector<float>& latent, index_t first, index_t count) {
    constexpr index_t frame = 8 * 12;
    const index_t frames = std::ssize(latent) / (16 * frame);
    std::vector<float> out;
    for (index_t c = 0; c < 16; ++c) {
        const auto from = latent.begin() + (c * frames + first) * frame;
        out.insert(out.end(), from, from + count * frame);
    }
    return out;
}

std::vector<index_t> shape_of(const fs::path& path) {
    return latpar::safetensors_file::open(path).at("latent").shape;
}

/// What the library's loop makes of the same video on one rank.
std::vector<float> sampled_by_loop(const workplace& at, bool independent) {
    generate::options options = at.tiny_options("stage=1", 4);
    options.latent = {16, 12, 8, 12};
    options.video.block_latents = 3;
    options.video.cat_latents = 2;
    const generate::job j = generate::prepare(options);
    wan::transformer<> model(j.weights,
                             std::make_shared<wan::executor>(wan::executor_options{.threads = 1}));
    model.set_text(latpar::guidance_branch::conditional, j.conditional);
    model.set_text(latpar::guidance_branch::unconditional, j.unconditional);
    latpar::self_communicator alone;
    latpar::loop::dual_paral loop(model, alone, j.schedule,
                                  latpar::guidance_rule::classifier_free(options.guidance),
                                  j.plan_of_video().pipelines.front());
    latpar::latent out(j.extents);
    const auto sink = [&](latpar::const_latent_view frames, index_t first) {
        latpar::kernel::host{}.copy(
            frames, latpar::subview(out.view(), {{first, 0, 0}, latpar::spatial_extents(frames)}));
    };
    if (independent) {
        // That of the whole latent, block for block.
        const latpar::philox_noise noise(options.seed);
        loop.run(
            [&](index_t block, latpar::latent_view z, latpar::stream_ref) {
                noise.fill(z, {{block == 0 ? 0 : 2 + 3 * block, 0, 0}, latpar::spatial_extents(z)},
                           {0, 0});
            },
            sink);
    } else {
        loop.run(latpar::coordinated_noise(options.seed, 3, 2), sink);
    }
    const auto values = out.elements<float>();
    return {values.begin(), values.end()};
}

void check_bytes(const json& report) {
    index_t all = 0;
    for (const auto& [axis, along] : report.at("bytes").at("axes").items()) {
        CAPTURE(axis);
        CHECK(along.at("planned") == along.at("metered"));
        const std::string mesh = report.at("mesh");
        const bool talks =
            mesh.find(axis) != std::string::npos && mesh.find(axis + "=1") == std::string::npos;
        CHECK((along.at("metered") > 0) == talks);
        all += along.at("metered").get<index_t>();
    }
    index_t sent = 0;
    for (const index_t rank : report.at("bytes").at("sent")) sent += rank;
    CHECK(all == sent);
    CHECK(report.at("bytes").at("total") == sent);
}

}  // namespace

TEST_CASE("any number of stages writes what the loop makes on one rank, and reports what it cost") {
    const workplace at;
    const auto expected = sampled_by_loop(at, false);
    // 10 latents behind the context: four blocks, of which the last delivers one latent.
    REQUIRE(run(at, video(at, "stage=1", 12, "--output " + at.file("one.safetensors"))).status ==
            0);
    CHECK(shape_of(at.file("one.safetensors")) == std::vector<index_t>{1, 16, 12, 8, 12});
    CHECK(latent_of(at.file("one.safetensors")) == expected);
    for (const std::string mesh : {"stage=2", "stage=4", "stage=2,guidance=2"}) {
        CAPTURE(mesh);
        const outcome done = run(at, video(at, mesh, 12,
                                           "--compare-serial --report " + at.file("r.json") +
                                               " --output " + at.file("many.safetensors")));
        INFO(done.text);
        REQUIRE(done.status == 0);
        CHECK(content(at.file("many.safetensors")) == content(at.file("one.safetensors")));
        CHECK_THAT(done.text, ContainsSubstring("block 4 of 4") && ContainsSubstring("12 of 12") &&
                                  ContainsSubstring("stages idle, measured"));

        const json r = json::parse(content(at.file("r.json")));
        CHECK(r.at("mesh") == mesh);
        CHECK(r.at("policy") == (mesh.find("guidance") == std::string::npos
                                     ? "dual_paral"
                                     : "dual_paral(guidance_parallel)"));
        CHECK(r.at("latent") == json({16, 12, 8, 12}));
        CHECK(r.at("relative_error") == 0);
        CHECK(r.at("psnr_db") == 100);
        CHECK(r.at("denoiser_calls").is_null());
        const json& v = r.at("video");
        CHECK(v.at("block_latents") == 3);
        CHECK(v.at("cat_latents") == 2);
        CHECK(v.at("total_latents") == 12);
        CHECK(v.at("first_latent") == 0);
        CHECK(v.at("latents") == 12);
        CHECK(v.at("blocks") == 4);
        CHECK(v.at("iterations") == 4 + 4 - 1);
        CHECK(v.at("tasks") == 4 * 4);
        CHECK(v.at("seconds_per_latent") > 0);
        const auto ranks = r.at("ranks").get<std::size_t>();
        for (const char* which : {"planned", "measured"}) {
            const json& idle = v.at("idle_share").at(which);
            CHECK(idle.at("ranks").size() == ranks);
            CHECK(idle.at("mean") > 0);
            for (const double share : idle.at("ranks")) CHECK((share >= 0 && share < 1));
        }
        check_bytes(r);
        REQUIRE(r.at("workspace_bytes").size() == ranks);
        for (std::size_t rank = 0; rank < ranks; ++rank) {
            CHECK(r.at("peak_bytes")[rank] > r.at("workspace_bytes")[rank]);
        }
        const outcome text = run(at, video(at, mesh, 12, "--plan=json"));
        REQUIRE(text.status == 0);
        const json plan = json::parse(text.text);
        CHECK(plan.at("policy") == r.at("policy"));
        CHECK(plan.at("bytes").at("total") == r.at("bytes").at("total"));
        CHECK(plan.at("workspace_bytes") == r.at("workspace_bytes"));
        CHECK(plan.at("iterations") == v.at("iterations"));
        CHECK(plan.at("idle_share").at("ranks") == v.at("idle_share").at("planned").at("ranks"));
        for (const char* axis : {"stage", "guidance"}) {
            CHECK(plan.at("axes").at(axis).at("bytes") ==
                  r.at("bytes").at("axes").at(axis).at("metered"));
        }
    }
}

TEST_CASE("a stage's tokens on several ranks give the video to rounding, and the plan's bytes") {
    const workplace at;
    REQUIRE(run(at, video(at, "stage=1", 12, "--output " + at.file("one.safetensors"))).status ==
            0);
    const auto one = latent_of(at.file("one.safetensors"));
    // 120 tokens; 7 ranks have uneven parts of them.
    for (const std::string mesh : {"stage=2,ulysses=2", "stage=2,ring=2,ulysses=2",
                                   "stage=1,guidance=2,ulysses=4", "stage=2,ring=7"}) {
        CAPTURE(mesh);
        const outcome done = run(at, video(at, mesh, 12,
                                           "--report " + at.file("r.json") + " --output " +
                                               at.file("many.safetensors")));
        INFO(done.text);
        REQUIRE(done.status == 0);
        CHECK(relative_l2(latent_of(at.file("many.safetensors")), one) < 1e-5);
        check_bytes(json::parse(content(at.file("r.json"))));
    }
    // Without context nothing is lent.
    const outcome alone = run(at, at.tiny("16x12x8x12") +
                                      "--mesh stage=2,ulysses=2 --block-latents 3 --cat-latents 0 "
                                      "--report " +
                                      at.file("r.json"));
    INFO(alone.text);
    REQUIRE(alone.status == 0);
    check_bytes(json::parse(content(at.file("r.json"))));
}

TEST_CASE("blocks may have independent noise, that of one latent of the video's length") {
    const workplace at;
    const auto expected = sampled_by_loop(at, true);
    REQUIRE(run(at, video(at, "stage=2", 12,
                          "--noise independent --output " + at.file("a.safetensors")))
                .status == 0);
    CHECK(latent_of(at.file("a.safetensors")) == expected);
    CHECK(expected != sampled_by_loop(at, false));
}

TEST_CASE("memory does not grow with the length") {
    const workplace at;
    std::vector<json> reports;
    for (const index_t latents : {20, 62}) {
        REQUIRE(run(at, video(at, "stage=2", latents,
                              "--report " + at.file("r.json") + " --output " +
                                  at.file("a.safetensors")))
                    .status == 0);
        reports.push_back(json::parse(content(at.file("r.json"))));
    }
    CHECK(reports[0].at("video").at("latents") == 20);
    CHECK(reports[1].at("video").at("latents") == 62);
    CHECK(reports[0].at("workspace_bytes") == reports[1].at("workspace_bytes"));
    CHECK(reports[0].at("peak_bytes") == reports[1].at("peak_bytes"));
}

TEST_CASE("a video that is stopped goes on from its state on any mesh, to the bit") {
    const workplace at;
    // A sampler with a history.
    const std::string unipc = "--scheduler unipc_flow ";
    const auto to = [&](const std::string& name) {
        return " --output " + at.file(name + ".safetensors") + " --report " +
               at.file(name + ".json") + ' ';
    };
    const std::string keeps = "--save-state " + at.file("state") + ' ';
    const std::string resumes = "--resume " + at.file("state") + ' ';
    REQUIRE(run(at, video(at, "stage=1", 12, unipc + to("whole"))).status == 0);
    const auto whole = latent_of(at.file("whole.safetensors"));

    const outcome first =
        run(at, video(at, "stage=2", 12, unipc + keeps + "--stop-after 4" + to("a")));
    INFO(first.text);
    REQUIRE(first.status == 0);
    CHECK_THAT(first.text, ContainsSubstring("wrote " + at.file("state")));
    // Five iterations, the one after the fourth included: two blocks, of 5 and 3 latents.
    const json a = json::parse(content(at.file("a.json")));
    CHECK(a.at("video").at("iterations") == 5);
    CHECK(a.at("video").at("latents") == 8);
    check_bytes(a);
    CHECK(shape_of(at.file("a.safetensors")) == std::vector<index_t>{1, 16, 8, 8, 12});
    CHECK(latent_of(at.file("a.safetensors")) == frames_of(whole, 0, 8));

    for (const std::string mesh : {"stage=4", "stage=1", "stage=2,guidance=2"}) {
        CAPTURE(mesh);
        const outcome rest =
            run(at, video(at, mesh, 12, unipc + resumes + "--compare-serial" + to("b")));
        INFO(rest.text);
        REQUIRE(rest.status == 0);
        const json b = json::parse(content(at.file("b.json")));
        CHECK(b.at("video").at("first_iteration") == 5);
        CHECK(b.at("video").at("iterations") == 2);
        CHECK(b.at("video").at("first_latent") == 8);
        CHECK(b.at("video").at("latents") == 4);
        CHECK(b.at("relative_error") == 0);
        check_bytes(b);
        CHECK(latent_of(at.file("b.safetensors")) == frames_of(whole, 8, 4));
        CHECK(latpar::safetensors_file::open(at.file("b.safetensors"))
                  .metadata()
                  .at("first_latent") == "8");
    }

    const auto refused = [&](const std::string& arguments, const std::string& remedy) {
        const outcome out = run(at, arguments);
        INFO(arguments << '\n' << out.text);
        CHECK(out.status == 1);
        CHECK_THAT(out.text, ContainsSubstring(remedy));
    };
    refused(video(at, "stage=2", 12, unipc + resumes + "--seed 7"), "--seed 6, this one has 7");
    refused(video(at, "stage=2", 12, unipc + resumes + "--noise independent"),
            "--noise coordinated, this one has independent");
    refused(video(at, "stage=2", 13, unipc + resumes), "another plan");
    refused(video(at, "stage=2", 12, resumes), "another plan");
    refused(video(at, "stage=2", 12, "--resume " + at.file("text.safetensors")),
            "a file that --save-state wrote");

    // Before the first block is done there is nothing to write, and nothing is lost.
    fs::remove(at.file("state"));
    fs::remove(at.file("a.safetensors"));
    const outcome early =
        run(at, video(at, "stage=2", 12, unipc + keeps + "--stop-after 1" + to("a")));
    INFO(early.text);
    REQUIRE(early.status == 0);
    CHECK_FALSE(fs::exists(at.file("a.safetensors")));
    REQUIRE(run(at, video(at, "stage=4", 12, unipc + resumes + to("b"))).status == 0);
    CHECK(content(at.file("b.safetensors")) == content(at.file("whole.safetensors")));

    // What ends before it is to stop leaves no state.
    fs::remove(at.file("state"));
    REQUIRE(run(at, video(at, "stage=2", 12, unipc + keeps + "--stop-after 100")).status == 0);
    CHECK_FALSE(fs::exists(at.file("state")));
}

TEST_CASE("an interrupt keeps what is done; of a video without an end it is the end") {
    const workplace at;
    const std::string small = "--height 48 --width 48 --steps 2 --block-latents 2 --cat-latents 1 ";
    CHECK(interrupted(at,
                      small + "--mesh stage=2 --total-latents 0 --output " + at.file("a.gif") +
                          " --save-state " + at.file("state") + " --report " + at.file("r.json"),
                      "5 latents") == 0);
    const json endless = json::parse(content(at.file("r.json")));
    CHECK(endless.at("video").at("total_latents").is_null());
    CHECK(endless.at("video").at("latents") >= 5);
    check_bytes(endless);
    const std::string gif = content(at.file("a.gif"));
    CHECK(gif.substr(0, 6) == "GIF89a");
    CHECK(gif.back() == ';');
    const outcome on = run(at, small + "--mesh stage=1 --total-latents 0 --stop-after 1 --resume " +
                                   at.file("state") + " --report " + at.file("s.json"));
    INFO(on.text);
    CHECK(on.status == 0);
    CHECK(json::parse(content(at.file("s.json"))).at("video").at("first_latent") ==
          endless.at("video").at("latents"));

    CHECK(interrupted(at,
                      video(at, "stage=2", 2000, "--output " + at.file("b.safetensors")) +
                          "--report " + at.file("r.json"),
                      "block") == 130);
    CHECK_THAT(content(at.file("log")), ContainsSubstring("what was done by then is written"));
    const json cut = json::parse(content(at.file("r.json")));
    CHECK(shape_of(at.file("b.safetensors"))[2] == cut.at("video").at("latents"));
    CHECK(cut.at("video").at("latents") < 2000);
}

TEST_CASE("a long video becomes pictures while it is made") {
    const workplace at;
    const std::string small =
        "--height 48 --width 48 --steps 2 --block-latents 3 --cat-latents 1 --total-latents 11 "
        "--mesh stage=2 --compare-serial ";
    const outcome out =
        run(at, small + "--output " + at.file("a.gif") + " --output " + at.file("a.png"));
    INFO(out.text);
    REQUIRE(out.status == 0);
    const std::string gif = content(at.file("a.gif"));
    CHECK(gif.substr(0, 6) == "GIF89a");
    CHECK(gif.back() == ';');
    // A row of eight frames of each run.
    const std::string png = content(at.file("a.png"));
    const auto number = [&](std::size_t from) {
        index_t value = 0;
        for (std::size_t k = 0; k < 4; ++k) {
            value = value * 256 + static_cast<unsigned char>(png[from + k]);
        }
        return value;
    };
    CHECK(png.substr(1, 3) == "PNG");
    CHECK(number(16) == 8 * 48 + 7 * 2);
    CHECK(number(20) == 2 * 48 + 2);

    fs::create_symlink("/dev/full", at.file("full.gif"));
    const outcome full = run(at, small + "--output " + at.file("full.gif"));
    CHECK(full.status == 1);
    CHECK_THAT(full.text, ContainsSubstring("full.gif"));
}

#if defined(LATPAR_MPIEXEC)
TEST_CASE("processes write the video of threads, and hold their own layers alone") {
    const workplace at;
    for (const auto& [ranks, mesh] :
         {std::pair("2", "stage=2"), std::pair("4", "stage=4"),
          std::pair("4", "stage=2,guidance=2"), std::pair("4", "stage=2,ulysses=2")}) {
        CAPTURE(mesh);
        const auto figures = [&](const std::string& name) {
            return "--threads 1 --report " + at.file(name + ".json") + " --output " +
                   at.file(name + ".safetensors");
        };
        REQUIRE(run(at, video(at, mesh, 12, figures("threads"))).status == 0);
        const outcome processes = run(at, video(at, mesh, 12, figures("mpi") + " --compare-serial"),
                                      std::string("timeout 100 " LATPAR_MPIEXEC " ") + ranks + ' ');
        INFO(processes.text);
        REQUIRE(processes.status == 0);
        CHECK(content(at.file("threads.safetensors")) == content(at.file("mpi.safetensors")));
        const json here = json::parse(content(at.file("threads.json")));
        const json there = json::parse(content(at.file("mpi.json")));
        CHECK(there.at("backend") == "mpi");
        CHECK(there.at("relative_error") < 1e-5);
        CHECK(here.at("bytes") == there.at("bytes"));
        CHECK(here.at("workspace_bytes") == there.at("workspace_bytes"));
        // Less by the weights of the layers that are elsewhere, and by their keys and values of the
        // two texts of eight tokens.
        const json plan = json::parse(run(at, video(at, mesh, 12, "--plan=json")).text);
        const index_t all =
            wan::load_weights(reference_file("wan_tiny.safetensors"))->storage.bytes();
        for (std::size_t rank = 0; rank < there.at("ranks"); ++rank) {
            const index_t own = plan.at("weight_bytes")[rank];
            const index_t elsewhere = 4 - 4 / static_cast<index_t>(plan.at("stages").size());
            const index_t texts = elsewhere * 2 * (2 * 8 * 96) * 4;
            CHECK(own < all);
            CHECK(there.at("peak_bytes")[rank] ==
                  here.at("peak_bytes")[rank].get<index_t>() - (all - own) - texts);
        }
    }
    const outcome wrong =
        run(at, video(at, "stage=3"), std::string("timeout 100 " LATPAR_MPIEXEC " 2 "));
    CHECK(wrong.status != 0);
    CHECK_THAT(wrong.text, ContainsSubstring("stage=2"));
}
#endif

TEST_CASE("any video is planned from a configuration alone") {
    const workplace at;
    std::ofstream(at.file("config.json"))
        << latpar::safetensors_file::open(reference_file("wan_tiny.safetensors"))
               .metadata()
               .at("config");
    const std::string shape = "--latent 16x160x60x104 --steps 50 --weights ";
    const std::string weights = reference_file("wan_tiny.safetensors").string();
    const outcome plan = run(at, shape + at.file("config.json") + " --mesh stage=4 --plan");
    INFO(plan.text);
    REQUIRE(plan.status == 0);
    CHECK_THAT(plan.text, ContainsSubstring("160 delivered from 19 blocks in 68 iterations") &&
                              ContainsSubstring("[3,4)") && ContainsSubstring("a stage at most"));
    CHECK(run(at, shape + weights + " --mesh stage=4 --plan").text == plan.text);
    for (const char* const axes : {"latent=2", "step=2,ulysses=2,guidance=2"}) {
        const std::string how = std::string(" --plan --mesh ") + axes;
        const outcome clip = run(at, shape + at.file("config.json") + how);
        INFO(clip.text);
        REQUIRE(clip.status == 0);
        CHECK_THAT(clip.text, ContainsSubstring("4 layers with 4 heads of 24"));
        CHECK(run(at, shape + weights + how).text == clip.text);
    }
    CHECK_THAT(run(at, shape + at.file("config.json")).text,
               ContainsSubstring("a configuration without weights; use it with --plan"));
    const outcome mesh = run(
        at, shape + at.file("config.json") + " --mesh stage=2,guidance=2,ulysses=2 --plan=json");
    INFO(mesh.text);
    REQUIRE(mesh.status == 0);
    const json numbers = json::parse(mesh.text);
    CHECK(numbers.at("policy") == "dual_paral(guidance_parallel(ulysses))");
    for (const char* axis : {"stage", "guidance", "ulysses"}) {
        CHECK(numbers.at("axes").at(axis).at("bytes") > 0);
    }
    CHECK(numbers.at("workspace_bytes").size() == 8);
    const json endless = json::parse(
        run(at, "--latent 16x0x60x104 --weights " + weights + " --mesh stage=4 --plan=json").text);
    CHECK(endless.at("blocks").is_null());
    CHECK(endless.at("bytes").at("total").is_null());
    CHECK(endless.at("workspace_bytes").size() == 4);
}

TEST_CASE("what has no meaning for a long video, or without one, is refused with the remedy") {
    const workplace at;
    const auto refused = [&](const std::string& arguments, const std::string& remedy) {
        const outcome out = run(at, arguments);
        INFO(arguments << "\n" << out.text);
        CHECK(out.status == 1);
        CHECK_THAT(out.text, ContainsSubstring(remedy));
    };
    for (const std::string option : {"--block-latents 8", "--cat-latents 8", "--total-latents 8",
                                     "--noise coordinated", "--stop-after 3"}) {
        refused(at.tiny() + option, option + " belongs to long videos");
        refused(at.tiny() + "--mesh latent=2 " + option, "add stage to --mesh");
    }
    refused(at.tiny() + "--save-state " + at.file("s"), "add stage to --mesh");
    refused(at.tiny() + "--resume " + at.file("text.safetensors"), "add stage to --mesh");
    refused(video(at, "stage=2,latent=2"), "ulysses or ring in place of latent");
    refused(video(at, "stage=2,step=2"), "leave step out");
    refused(video(at, "stage=1,step=2"), "leave step out");
    refused(video(at, "stage=2,guidance=3"), "divisor of 2");
    refused(video(at, "stage=5"), "at most as many as it has layers");
    refused(video(at, "stage=2") + "--ranks 3", "stage=3");
    refused(video(at, "stage=1") + "--batch-step 2", "leave one of them out");
    refused(video(at, "stage=2") + "--total-latents 13", "write T = 13");
    refused("--mesh stage=2 --frames 20 --total-latents 30", "leave one of them out");
    refused(video(at, "stage=2", 2), "more than the 2 of the context");
    refused(at.tiny("16x12x8x12") + "--mesh stage=2 --block-latents 3 --cat-latents 4",
            "use 0 to 3");
    refused(video(at, "stage=2", 0) + "--output " + at.file("a.safetensors"), "use .gif");
    refused("--mesh stage=2 --total-latents 0 --output " + at.file("a.png"), "use .gif");
    refused(video(at, "stage=2", 0) + "--compare-serial", "give --total-latents a number");
    refused(video(at, "stage=2") + "--save-state " + at.file("no/s"), "create it first");
    refused(video(at, "stage=2") + "--wire-state bf16", "--wire-state bf16 belongs to an axis");
    refused(video(at, "stage=2") + "--overlap 0.5", "--overlap 0.5 belongs to an axis");
    refused(video(at, "stage=2") + "--stop-after 3 --compare-serial", "compares whole ones");
    refused(video(at, "stage=2") + "--output " + at.file("a.gif") + " --save-state " +
                at.file("./a.gif"),
            "is named for two files");
    refused("--output " + at.file("a.gif") + " " + at.file("a.gif"), "is named for two files");
    refused("--mesh stage=2 --latent 16x21x60x104 --patch 1,2,2 --plan", "--weights");
    CHECK(run(at, video(at, "stage=2") + "--noise loud").status != 0);
    CHECK(run(at, video(at, "stage=2") + "--resume " + at.file("none")).status != 0);
}
