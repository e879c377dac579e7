// SPDX-License-Identifier: Apache-2.0
// latpar-generate as its users run it: its files, its report, its refusals, its end.
#include <latpar/comm/self.hpp>
#include <latpar/compose/composition.hpp>
#include <latpar/schedule/philox_noise.hpp>

#include <examples/generate_run.hpp>
#include <generate/guided_model.hpp>
#include <support/recorded.hpp>

using latpar::index_t;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// What one rank that simulates the job's mesh samples.
std::vector<float> simulated(const generate::job& j) {
    const latpar::composition_plan ranks = j.plan().nest;
    latpar::composition_options options = ranks.options;
    options.simulate = true;
    const auto plan = latpar::plan_composition(ranks.problem, ranks.shape, options);
    latpar::self_communicator alone;
    latpar::mesh<latpar::self_communicator> axes(alone, {});
    latpar::composition nest(generate::guided_model(j, 1, {}), axes, j.schedule, plan);
    const latpar::philox_noise noise(j.options.seed);
    nest.start(noise);
    nest.run(noise);
    latpar::latent out(j.extents);
    nest.collect(out.view());
    const auto values = out.elements<float>();
    return {values.begin(), values.end()};
}

/// What is metered along each axis and in all is what was planned.
void check_bytes(const json& report, const std::vector<std::string>& talking) {
    const json& bytes = report.at("bytes");
    index_t all = 0;
    for (const std::string axis : {"step", "guidance", "latent", "ring", "ulysses"}) {
        CAPTURE(axis);
        const json& along = bytes.at("axes").at(axis);
        CHECK(along.at("planned") == along.at("metered"));
        const bool talks = std::find(talking.begin(), talking.end(), axis) != talking.end();
        CHECK((along.at("metered") > 0) == talks);
        all += along.at("metered").get<index_t>();
    }
    index_t sent = 0;
    for (const index_t rank : bytes.at("sent")) sent += rank;
    CHECK(bytes.at("sent").size() == report.at("ranks"));
    CHECK(all == sent);
    CHECK(bytes.at("total") == sent);
    CHECK(bytes.at("planned") == sent);
}

}  // namespace

TEST_CASE("BatchStep reuses the newest prediction unless told otherwise") {
    const workplace at;
    const outcome plan = run(at, at.tiny("16x6x8x12", 12) + "--batch-step 2 --plan");
    INFO(plan.text);
    CHECK(plan.status == 0);
    CHECK_THAT(plan.text, ContainsSubstring("reuse newest"));
}

TEST_CASE("tokens on several ranks give one rank's latent to rounding, and the bytes of the plan") {
    const workplace at;
    REQUIRE(run(at, at.tiny() + "--output " + at.file("serial.safetensors")).status == 0);
    const auto serial = latent_of(at.file("serial.safetensors"));
    const std::vector<std::pair<std::string, std::vector<std::string>>> meshes{
        {"ulysses=2", {"ulysses"}},
        {"ring=2", {"ring"}},
        {"ring=2,ulysses=2", {"ring", "ulysses"}},
        {"guidance=2,ulysses=2", {"guidance", "ulysses"}}};
    for (const auto& [mesh, talking] : meshes) {
        CAPTURE(mesh);
        const outcome done =
            run(at, at.tiny() + "--mesh " + mesh + " --report " + at.file("r.json") + " --output " +
                        at.file("spread.safetensors"));
        INFO(done.text);
        REQUIRE(done.status == 0);
        CHECK(relative_l2(latent_of(at.file("spread.safetensors")), serial) < 1e-4);
        const json report = json::parse(content(at.file("r.json")));
        check_bytes(report, talking);
        CHECK(report.at("denoiser_calls").at("total") ==
              report.at("denoiser_calls").at("critical_path"));
    }
    // Cut as well: as the same cut on whole calls.
    REQUIRE(run(at, at.tiny() + "--mesh latent=2 --output " + at.file("cut.safetensors")).status ==
            0);
    REQUIRE(run(at, at.tiny() + "--mesh latent=2,ulysses=2 --report " + at.file("r.json") +
                        " --output " + at.file("both.safetensors"))
                .status == 0);
    CHECK(relative_l2(latent_of(at.file("both.safetensors")),
                      latent_of(at.file("cut.safetensors"))) < 1e-4);
    check_bytes(json::parse(content(at.file("r.json"))), {"latent", "ulysses"});
}

TEST_CASE("one part gives the file of no mesh; ranks as threads give the report its figures") {
    const workplace at;
    REQUIRE(run(at, at.tiny() + "--output " + at.file("serial.safetensors")).status == 0);
    REQUIRE(run(at, at.tiny() + "--mesh latent=1 --output " + at.file("one.safetensors")).status ==
            0);
    CHECK(content(at.file("serial.safetensors")) == content(at.file("one.safetensors")));

    const outcome four =
        run(at, at.tiny() + "--mesh latent=4 --compare-serial --report " + at.file("r.json") +
                    " --output " + at.file("four.safetensors"));
    INFO(four.text);
    REQUIRE(four.status == 0);
    CHECK_THAT(four.text, ContainsSubstring("PSNR against one rank"));
    CHECK_THAT(four.text, ContainsSubstring("step 4 of 4"));
    const json r = json::parse(content(at.file("r.json")));
    CHECK(r.at("policy") == "latent_parallel");
    CHECK(r.at("mesh") == "latent=4");
    CHECK(r.at("ranks") == 4);
    CHECK(r.at("backend") == "threads");
    CHECK(r.at("device") == "cpu");
    CHECK(r.at("devices") == json::array());
    CHECK(r.at("precision") == "f32");
    CHECK(r.at("model") == "wan_tiny");
    CHECK(r.at("latent") == json({16, 6, 8, 12}));
    CHECK(r.at("steps") == 4);
    CHECK(r.at("seed") == 6);
    CHECK(r.at("scheduler") == "euler_flow");
    CHECK(r.at("wall_seconds") > 0);
    CHECK(r.at("denoiser_calls").at("critical_path") == 4);
    CHECK(r.at("denoiser_calls").at("total") > 4);
    index_t sent = 0;
    for (const index_t bytes : r.at("bytes").at("sent")) sent += bytes;
    CHECK(r.at("bytes").at("planned") == r.at("bytes").at("total"));
    CHECK(r.at("bytes").at("total") == sent);
    CHECK(sent > 0);
    CHECK(r.at("bytes").at("paper") > 0);
    CHECK(r.at("workspace_bytes").size() == 4);
    CHECK(r.at("peak_bytes").size() == 4);
    CHECK(r.at("peak_bytes")[0] > r.at("workspace_bytes")[0]);
    CHECK(r.at("psnr_db") > 10);
    CHECK(r.at("relative_error") > 0);

    const latpar::safetensors_file file =
        latpar::safetensors_file::open(at.file("four.safetensors"));
    CHECK(file.at("latent").shape == std::vector<index_t>{1, 16, 6, 8, 12});
    CHECK(file.metadata().at("seed") == "6");
}

TEST_CASE("without a comparison its figures are null, and one rank sends nothing") {
    const workplace at;
    REQUIRE(run(at, at.tiny() + "--quiet --report " + at.file("r.json")).text.empty());
    const json r = json::parse(content(at.file("r.json")));
    CHECK(r.at("policy") == "serial");
    CHECK(r.at("psnr_db").is_null());
    CHECK(r.at("relative_error").is_null());
    CHECK(r.at("bytes").at("total") == 0);
    CHECK(r.at("bytes").at("paper").is_null());
}

TEST_CASE("a mesh of three axes gives the bits of its simulation, and the figures of its plan") {
    const workplace at;
    const std::string mesh = "latent=2,step=2,guidance=2";
    const std::string arguments = at.tiny("16x6x8x12", 7) + "--warm-up 2 --mesh " + mesh;
    const outcome out = run(at, arguments + " --compare-serial --report " + at.file("r.json") +
                                    " --output " + at.file("eight.safetensors"));
    INFO(out.text);
    REQUIRE(out.status == 0);
    for (const char* text : {"PSNR against one rank", "along step", "along guidance",
                             "along latent", "denoiser calls, critical path"}) {
        CHECK_THAT(out.text, ContainsSubstring(text));
    }
    generate::options options = at.tiny_options(mesh, 7);
    options.para_step.warm_up = 2;
    CHECK(latent_of(at.file("eight.safetensors")) == simulated(generate::prepare(options)));

    const json r = json::parse(content(at.file("r.json")));
    CHECK(r.at("policy") == "para_step(guidance_parallel(latent_parallel))");
    CHECK(r.at("mesh") == "step=2,guidance=2,latent=2");
    CHECK(r.at("ranks") == 8);
    // Two steps of warm-up, and rounds of steps 2 and 3, 4 and 5, 6. Both places along step do the
    // warm-up, and each step has two parts, whose branches are two model calls.
    CHECK(r.at("denoiser_calls").at("critical_path") == 2 + 3);
    CHECK(r.at("denoiser_calls").at("total") == (2 * 2 + 5) * 2);
    CHECK(r.at("model_calls").at("critical_path") == 2 + 3);
    CHECK(r.at("model_calls").at("total") == (2 * 2 + 5) * 2 * 2);
    CHECK(r.at("model_calls").at("serial") == 14);
    CHECK(r.at("rounds").at("steps") == 2);
    CHECK(r.at("rounds").at("warm_up") == 2);
    check_bytes(r, {"step", "guidance", "latent"});
    CHECK(r.at("bytes").at("paper").is_null());
    CHECK(r.at("workspace_bytes").size() == 8);
    for (std::size_t rank = 0; rank < 8; ++rank) {
        CHECK(r.at("peak_bytes")[rank] > r.at("workspace_bytes")[rank]);
    }
    CHECK(r.at("relative_error") > 0);

    const outcome text = run(at, arguments + " --plan=json");
    REQUIRE(text.status == 0);
    const json plan = json::parse(text.text);
    CHECK(plan.at("policy") == r.at("policy"));
    CHECK(plan.at("bytes").at("total") == r.at("bytes").at("total"));
    CHECK(plan.at("bytes").at("sent") == r.at("bytes").at("sent"));
    CHECK(plan.at("denoiser_calls") == r.at("denoiser_calls"));
    CHECK(plan.at("model_calls") == r.at("model_calls"));
    CHECK(plan.at("workspace_bytes") == r.at("workspace_bytes"));
    for (const char* axis : {"step", "guidance", "latent"}) {
        CHECK(plan.at("axes").at(axis).at("bytes") ==
              r.at("bytes").at("axes").at(axis).at("metered"));
    }
    const outcome table = run(at, arguments + " --plan");
    CHECK_THAT(table.text, ContainsSubstring("ParaStep: 7 steps, warm-up 2") &&
                               ContainsSubstring("5 on the critical path, 14 on one rank"));
}

TEST_CASE("pairs of axes, wires and reuse give the bits of their simulation") {
    const workplace at;
    struct pair {
        std::string mesh;
        std::string policy;
        std::vector<std::string> talking;
    };
    for (const pair& p :
         {pair{"step=2,latent=2", "para_step(latent_parallel)", {"step", "latent"}},
          pair{"guidance=2,latent=3", "guidance_parallel(latent_parallel)", {"guidance", "latent"}},
          pair{"step=3,guidance=2", "para_step(guidance_parallel)", {"step", "guidance"}}}) {
        std::string arguments = at.tiny("16x6x8x12", 7) +
                                "--wire-prediction bf16 --wire-state f16 --scheduler unipc_flow ";
        if (p.mesh.find("step") != std::string::npos) {
            arguments += "--warm-up 1 --reuse extrapolated --history official ";
        }
        if (p.mesh.find("latent") != std::string::npos) arguments += "--layout central ";
        const outcome out =
            run(at, arguments + "--mesh " + p.mesh + " --report " + at.file("r.json") +
                        " --output " + at.file("ranks.safetensors"));
        INFO(p.mesh << '\n' << out.text);
        REQUIRE(out.status == 0);
        generate::options options = at.tiny_options(p.mesh, 7);
        options.scheduler = "unipc_flow";
        options.para_step.warm_up = 1;
        options.para_step.reuse = latpar::loop::reuse::extrapolated;
        options.para_step.history = latpar::loop::history::official;
        options.latent_parallel.layout = latpar::latent_layout::central;
        options.latent_parallel.wire_prediction = options.para_step.wire_prediction =
            latpar::dtype::bf16;
        options.latent_parallel.wire_state = options.para_step.wire_state = latpar::dtype::f16;
        CHECK(latent_of(at.file("ranks.safetensors")) == simulated(generate::prepare(options)));
        const json r = json::parse(content(at.file("r.json")));
        CHECK(r.at("policy") == p.policy);
        check_bytes(r, p.talking);
    }
}

TEST_CASE("the branches on two ranks give the file of one rank; one branch alone sends nothing") {
    const workplace at;
    for (const std::string& scale : std::vector<std::string>{"3", "1"}) {
        const std::string arguments = at.tiny() + "--guidance " + scale;
        REQUIRE(run(at, arguments + " --compare-serial --report " + at.file("one.json") +
                            " --output " + at.file("one.safetensors"))
                    .status == 0);
        REQUIRE(run(at, arguments + " --mesh guidance=2 --report " + at.file("two.json") +
                            " --output " + at.file("two.safetensors"))
                    .status == 0);
        CHECK(content(at.file("one.safetensors")) == content(at.file("two.safetensors")));
        const json one = json::parse(content(at.file("one.json")));
        CHECK(one.at("relative_error") == 0);
        CHECK(one.at("model_calls").at("total") == (scale == "1" ? 4 : 8));
        const json two = json::parse(content(at.file("two.json")));
        CHECK(two.at("denoiser_calls").at("total") == 4);
        CHECK(two.at("model_calls").at("total") == 8);
        CHECK(two.at("model_calls").at("critical_path") == 4);
        check_bytes(
            two, scale == "1" ? std::vector<std::string>{} : std::vector<std::string>{"guidance"});
    }
}

TEST_CASE("steps in one batch give the file of as many ranks along step") {
    const workplace at;
    // With these numbers the last step leads a round, so that BatchStep does not treat it apart.
    const std::string arguments =
        at.tiny("16x6x8x12", 7) + "--scheduler unipc_flow --warm-up 2 --reuse extrapolated ";
    REQUIRE(run(at, arguments + "--mesh step=2 --report " + at.file("step.json") + " --output " +
                        at.file("step.safetensors"))
                .status == 0);
    const outcome batch =
        run(at, arguments + "--batch-step 2 --compare-serial --report " + at.file("batch.json") +
                    " --output " + at.file("batch.safetensors"));
    INFO(batch.text);
    REQUIRE(batch.status == 0);
    CHECK(content(at.file("step.safetensors")) == content(at.file("batch.safetensors")));
    const json step = json::parse(content(at.file("step.json")));
    check_bytes(step, {"step"});
    CHECK(step.at("policy") == "para_step");
    CHECK(step.at("bytes").at("paper") > 0);
    const json r = json::parse(content(at.file("batch.json")));
    check_bytes(r, {});
    CHECK(r.at("policy") == "batch_step");
    CHECK(r.at("denoiser_calls").at("total") == 7);
    CHECK(r.at("denoiser_calls").at("critical_path") == 5);
    CHECK(r.at("model_calls").at("total") == 14);
    CHECK(r.at("model_calls").at("critical_path") == 10);
    CHECK(r.at("model_calls").at("serial") == 14);
    CHECK(r.at("rounds").at("steps") == 2);
    CHECK(r.at("relative_error") > 0);
    CHECK(r.at("peak_bytes")[0] > r.at("workspace_bytes")[0]);
    const generate::job j = generate::prepare(at.tiny_options("", 7));
    CHECK(latpar::max_batch_of(generate::guided_model(j, 1, {})) >= 2);
    CHECK_THAT(run(at, arguments + "--batch-step 2 --plan").text,
               ContainsSubstring("5 one after the other"));
    CHECK(json::parse(run(at, arguments + "--batch-step 2 --plan=json").text).at("batch_step") ==
          json({{"degree", 2}, {"warm_up", 2}, {"reuse", "extrapolated"}}));
}

TEST_CASE("every layout and wire runs") {
    const workplace at;
    for (const std::string& layout : std::vector<std::string>{"central", "replicated", "sharded"}) {
        REQUIRE(run(at, at.tiny() + "--mesh latent=3 --overlap 0.5 --layout " + layout +
                            " --output " + at.file(layout + ".safetensors"))
                    .status == 0);
        CHECK(content(at.file(layout + ".safetensors")) == content(at.file("central.safetensors")));
        CHECK(run(at, at.tiny() +
                          "--mesh latent=3 --wire-prediction bf16 --wire-state f16 --scheduler "
                          "unipc_flow --partition paper --rotation tw --layout " +
                          layout)
                  .status == 0);
    }
}

TEST_CASE("the bundled model writes pictures, and knows its words") {
    const workplace at;
    const outcome out = run(at, "--steps 2 --frames 8 --mesh latent=2 --compare-serial --output " +
                                    at.file("a.gif") + " --output " + at.file("a.png"));
    INFO(out.text);
    REQUIRE(out.status == 0);
    CHECK(content(at.file("a.gif")).substr(0, 6) == "GIF89a");
    CHECK(content(at.file("a.png")).substr(1, 3) == "PNG");
    const outcome unknown = run(at, "--prompt 'red circle, mauve star'");
    CHECK(unknown.status == 1);
    CHECK_THAT(unknown.text, ContainsSubstring("mauve") && ContainsSubstring("purple"));
}

TEST_CASE("what fails after sampling ends all ranks with its message") {
    const workplace at;
    fs::create_symlink("/dev/full", at.file("full.gif"));
    const std::string arguments =
        "--steps 1 --frames 4 --height 48 --width 48 --mesh latent=2 --output " +
        at.file("full.gif");
    for (const std::string& launcher : {
             std::string(),
#if defined(LATPAR_MPIEXEC)
                 std::string("timeout 60 " LATPAR_MPIEXEC " 2 "),
#endif
         }) {
        const outcome out = run(at, arguments, launcher);
        INFO(out.text);
        CHECK(out.status == 1);
        CHECK_THAT(out.text, ContainsSubstring("full.gif"));
    }
}

#if defined(LATPAR_MPIEXEC)
TEST_CASE("processes write the file that threads write") {
    const workplace at;
    REQUIRE(
        run(at, at.tiny() + "--mesh latent=4 --output " + at.file("threads.safetensors")).status ==
        0);
    const outcome processes = run(at,
                                  at.tiny() + "--mesh latent=4 --report " + at.file("r.json") +
                                      " --output " + at.file("mpi.safetensors"),
                                  LATPAR_MPIEXEC " 4 ");
    INFO(processes.text);
    REQUIRE(processes.status == 0);
    CHECK(content(at.file("threads.safetensors")) == content(at.file("mpi.safetensors")));
    CHECK(json::parse(content(at.file("r.json"))).at("backend") == "mpi");
    const std::string first = at.tiny() + "--mesh latent=2 --seed 3";
    const outcome seeds = run(at, at.tiny() + "--mesh latent=2 --seed 4",
                              LATPAR_MPIEXEC " 1 " + program() + ' ' + first + " : -n 1 ");
    CHECK(seeds.status != 0);
    CHECK_THAT(seeds.text, ContainsSubstring("the ranks disagree on the video") &&
                               ContainsSubstring("--seed 3") && ContainsSubstring("--seed 4"));
    const outcome wrong = run(at, at.tiny() + "--mesh latent=3", LATPAR_MPIEXEC " 2 ");
    CHECK(wrong.status != 0);
    CHECK_THAT(wrong.text, ContainsSubstring("latent=2"));
    const outcome branches = run(at, at.tiny() + "--mesh guidance=3", LATPAR_MPIEXEC " 3 ");
    CHECK(branches.status != 0);
    CHECK_THAT(branches.text, ContainsSubstring("ranks 0 to 2: guidance") &&
                                  ContainsSubstring("use 1 to 2 ranks"));
}

TEST_CASE("processes on a mesh write the file and send the bytes of threads") {
    const workplace at;
    for (const auto& [ranks, mesh] : {std::pair("4", "guidance=2,latent=2"),
                                      std::pair("8", "step=2,guidance=2,latent=2 --warm-up 2")}) {
        const std::string arguments = at.tiny("16x6x8x12", 6) + "--mesh " + mesh;
        REQUIRE(run(at, arguments + " --report " + at.file("threads.json") + " --output " +
                            at.file("threads.safetensors"))
                    .status == 0);
        const outcome processes = run(at,
                                      arguments + " --report " + at.file("mpi.json") +
                                          " --output " + at.file("mpi.safetensors"),
                                      std::string("timeout 200 " LATPAR_MPIEXEC " ") + ranks + ' ');
        INFO(mesh << '\n' << processes.text);
        REQUIRE(processes.status == 0);
        CHECK(content(at.file("threads.safetensors")) == content(at.file("mpi.safetensors")));
        const json here = json::parse(content(at.file("threads.json")));
        const json there = json::parse(content(at.file("mpi.json")));
        CHECK(there.at("backend") == "mpi");
        CHECK(here.at("bytes") == there.at("bytes"));
        CHECK(here.at("workspace_bytes") == there.at("workspace_bytes"));
        CHECK(here.at("model_calls") == there.at("model_calls"));
    }
}
#endif

TEST_CASE("a plan is printed for any shape, without weights") {
    const workplace at;
    const std::string wan =
        "--latent 16x13x60x104 --patch 1,2,2 --mesh latent=4 --overlap 1 --steps 60 "
        "--partition paper ";
    const outcome table = run(at, wan + "--plan");
    REQUIRE(table.status == 0);
    // Any overlap will do for one part.
    CHECK(run(at, "--latent 16x13x60x104 --patch 1,2,2 --mesh latent=1 --overlap 0.5 --plan")
              .status == 0);
    CHECK_THAT(table.text, ContainsSubstring("1811.88 MiB") && ContainsSubstring("cut along W"));
    const outcome text = run(at, wan + "--plan=json");
    const json plan = json::parse(text.text);
    CHECK(plan.at("cuts").size() == 3);
    CHECK(plan.at("cuts")[0].at("parts").size() == 4);
    CHECK(plan.at("bytes").at("sent").size() == 4);
    CHECK(plan.at("workspace_bytes").size() == 4);
    CHECK(plan.at("denoiser_calls").at("critical_path") == 60);
    CHECK(run(at, "--latent 16x21x60x104 --patch 1,2,2 --mesh latent=16 --plan").status == 0);
}

TEST_CASE("what cannot be done is refused with the value and the remedy") {
    const workplace at;
    const auto refused = [&](const std::string& arguments, const std::string& remedy) {
        const outcome out = run(at, arguments);
        INFO(arguments << "\n" << out.text);
        CHECK(out.status != 0);
        CHECK_THAT(out.text, ContainsSubstring(remedy));
    };
    refused(at.tiny() + "--mesh latent=4 --ranks 3", "latent=3");
    refused(at.tiny() + "--mesh latent=4 --overlap 3.5", "0 to 3");
    refused(at.tiny() + "--mesh depth=2", "the axes are");
    refused(at.tiny() + "--mesh ulysses=8", "4 heads cannot be spread on 8 ranks");
    refused(at.tiny() + "--mesh guidance=3", "use 1 to 2");
    refused(at.tiny() + "--mesh step=2", "use 1 to 4");  // the warm-up is 5 steps
    refused(at.tiny() + "--mesh step=2 --warm-up 0", "--warm-up");
    refused(at.tiny() + "--mesh latent=2 --warm-up 2", "leave --warm-up out");
    refused(at.tiny() + "--wire-state bf16", "belongs to the axis step or latent");
    refused(at.tiny() + "--batch-step 2 --warm-up 1 --wire-prediction bf16", "--mesh step=2");
    refused(at.tiny() + "--batch-step 2 --warm-up 1 --wire-state bf16", "--mesh step=2");
    refused(at.tiny() + "--mesh step=2,latent=2 --warm-up 1 --layout sharded", "use replicated");
    refused(at.tiny() + "--mesh step=2 --warm-up 1 --reuse sideways", "extrapolated");
    refused(at.tiny() + "--mesh step=2 --warm-up 1 --history none", "official");
    refused(at.tiny() + "--batch-step 2 --warm-up 1 --mesh step=2", "leave one of them out");
    refused(at.tiny() + "--batch-step 2 --warm-up 1 --mesh latent=2", "leave --mesh out");
    refused(at.tiny() + "--batch-step 2 --warm-up 1 --mesh guidance=2", "leave --mesh out");
    refused(at.tiny() + "--batch-step 2 --warm-up 1 --ranks 2", "leave --ranks out");
    refused(at.tiny() + "--batch-step 2 --warm-up 5", "use 1 to 4");
    refused(at.tiny() + "--batch-step 2 --warm-up 1 --reuse own", "use newest");
    refused(at.tiny() + "--batch-step 2 --warm-up 1 --history official", "--history shared");
    refused(at.tiny("16x6x9x12"), "such as 10");
    refused(at.tiny("15x6x8x12"), "the model 16");
    refused(at.tiny("16x6x8"), "16x21x60x104");
    refused(at.tiny() + "--output " + at.file("a.gif"), "write it as .safetensors");
    refused(at.tiny() + "--output " + at.file("a.mp4"), ".gif, .png or .safetensors");
    refused(at.tiny() + "--output " + at.file("no/a.safetensors"), "create it first");
    refused(at.tiny() + "--rotation TX", "none of T, H, W");
    const std::string tiny = reference_file("wan_tiny.safetensors").string();
    refused("--weights " + tiny, "--text-embedding");
    refused("--weights " + tiny + " --frames 9 --mesh latent=2 --plan", "give --latent CxTxHxW");
    refused("--weights " + reference_file("schedulers.safetensors").string(), "schedulers");
    refused(at.tiny() + "--scheduler heun", "euler_flow");
    refused("--frobnicate", "--frobnicate");
    refused(at.tiny() + "--seed -1", "whole number");
    refused(at.tiny() + "--seed 99999999999999999999999", "whole number");
    refused(at.tiny() + "--guidance nan", "no number to scale with");
    refused(at.tiny() + "--layout sideways", "sharded");
    refused(at.tiny() + "--report " + at.file("no/r.json"), "create it first");
    refused(at.tiny() + "--patch 1,2,2", "goes with --plan");
    refused(at.tiny() + "--plan --mesh latent=4 --ranks 3", "latent=3");
    refused("--plan --latent 16x999999x999999x999998 --patch 1,1,1",
            "more bytes than can be counted");
}

TEST_CASE("an interrupt stops all ranks, writes nothing and says so by its status") {
    const workplace at;
    const std::string output = at.file("never.safetensors");
    const std::string command = "exec " + program() + ' ' + at.tiny("16x16x32x32", 1000) +
                                " --mesh latent=2 --output " + output + " 2> " + at.file("log");
    const pid_t child = fork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", command.c_str(), static_cast<char*>(nullptr));
        _exit(127);
    }
    for (int i = 0; i < 200 && content(at.file("log")).empty() && kill(child, 0) == 0; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        if (i == 20) break;  // running by now, though the first lines of progress may be far
    }
    kill(child, SIGINT);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 130);
    CHECK_FALSE(fs::exists(output));
}
