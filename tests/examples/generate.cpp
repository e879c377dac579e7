// SPDX-License-Identifier: Apache-2.0
// latpar-generate as its users run it: its files, its report, its refusals, its end.
#include <latpar/io/safetensors.hpp>

#include <nlohmann/json.hpp>
#include <signal.h>
#include <support/catch.hpp>
#include <support/reference.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

using latpar::index_t;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// A folder of this test alone, with a text embedding for the tiny model.
struct workplace {
    fs::path folder = fs::temp_directory_path() / ("latpar_generate_" + std::to_string(getpid()));
    workplace() {
        fs::create_directories(folder);
        std::vector<float> text(8 * 32);
        for (std::size_t i = 0; i < text.size(); ++i)
            text[i] = 0.01f * static_cast<float>(i % 37) - 0.2f;
        const std::vector<float> none(8 * 32, 0.1f);
        latpar::safetensors_writer writer;
        writer.add<float>("conditional", {8, 32}, text);
        writer.add<float>("unconditional", {8, 32}, none);
        writer.write(folder / "text.safetensors");
    }
    ~workplace() { fs::remove_all(folder); }

    [[nodiscard]] std::string file(const std::string& name) const {
        return (folder / name).string();
    }
    /// Arguments for a small job on the tiny model.
    [[nodiscard]] std::string tiny(const std::string& latent = "16x6x8x12", int steps = 4) const {
        return " --weights " + reference_file("wan_tiny.safetensors").string() +
               " --text-embedding " + file("text.safetensors") + " --latent " + latent +
               " --steps " + std::to_string(steps) + " ";
    }
};

std::string content(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream out;
    out << file.rdbuf();
    return std::move(out).str();
}

struct outcome {
    int status;
    std::string text;  ///< standard output and error
};

outcome run(const workplace& at, const std::string& arguments, const std::string& launcher = "") {
    const std::string log = at.file("log");
    const int raw =
        std::system((launcher + LATPAR_GENERATE " " + arguments + " > " + log + " 2>&1").c_str());
    return {WIFEXITED(raw) ? WEXITSTATUS(raw) : -1, content(log)};
}

}  // namespace

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
    CHECK(r.at("model") == "wan_tiny");
    CHECK(r.at("latent") == json({16, 6, 8, 12}));
    CHECK(r.at("steps") == 4);
    CHECK(r.at("seed") == 8);
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
    CHECK(file.metadata().at("seed") == "8");
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
    const outcome wrong = run(at, at.tiny() + "--mesh latent=3", LATPAR_MPIEXEC " 2 ");
    CHECK(wrong.status != 0);
    CHECK_THAT(wrong.text, ContainsSubstring("latent=2"));
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
    refused(at.tiny() + "--mesh stage=2", "use latent");
    refused(at.tiny() + "--mesh depth=2", "the axes are");
    refused(at.tiny("16x6x9x12"), "such as 10");
    refused(at.tiny("15x6x8x12"), "the model 16");
    refused(at.tiny("16x6x8"), "16x21x60x104");
    refused(at.tiny() + "--output " + at.file("a.gif"), "write it as .safetensors");
    refused(at.tiny() + "--output " + at.file("a.mp4"), ".gif, .png or .safetensors");
    refused(at.tiny() + "--output " + at.file("no/a.safetensors"), "create it first");
    refused(at.tiny() + "--device cuda", "--device cpu");
    refused(at.tiny() + "--rotation TX", "none of T, H, W");
    refused("--weights " + reference_file("wan_tiny.safetensors").string(), "--text-embedding");
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
    const std::string command = "exec " LATPAR_GENERATE " " + at.tiny("16x16x32x32", 1000) +
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
