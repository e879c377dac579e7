// SPDX-License-Identifier: Apache-2.0
// latpar-generate on GPUs, against itself on the processor.
#include <cuda/device_lab.hpp>
#include <examples/generate_run.hpp>
#include <support/recorded.hpp>

using nlohmann::json;

namespace {

// The processor's instruction sets differ from one another by 1e-6 to 2e-5 of such a clip.
constexpr double rounding = 1e-4;

const std::string clip = "--frames 8 --height 48 --width 48 --steps 4 ";
const std::string video =
    "--height 48 --width 48 --steps 4 --block-latents 4 --cat-latents 2 --total-latents 12 ";

/// What a run wrote.
struct result {
    std::vector<float> latent;
    json report;
};

result sampled(const workplace& at, const std::string& arguments,
               const std::string& launcher = "") {
    const outcome done = run(
        at, arguments + " --report " + at.file("r.json") + " --output " + at.file("z.safetensors"),
        launcher);
    INFO(arguments << '\n' << done.text);
    REQUIRE(done.status == 0);
    return {latent_of(at.file("z.safetensors")), json::parse(content(at.file("r.json")))};
}

/// All that a report says of what was sent and called.
void check_alike(const json& gpu, const json& cpu) {
    for (const char* same :
         {"policy", "mesh", "ranks", "bytes", "denoiser_calls", "model_calls", "workspace_bytes"}) {
        CAPTURE(same);
        CHECK(gpu.at(same) == cpu.at(same));
    }
    CHECK(gpu.at("device") == "cuda");
    CHECK(gpu.at("precision") == "f32");
    CHECK(gpu.at("threads") == 1);
    CHECK(gpu.at("devices").size() == gpu.at("ranks"));
    for (std::size_t rank = 0; rank < gpu.at("ranks"); ++rank) {
        CHECK(gpu.at("peak_bytes")[rank] > gpu.at("workspace_bytes")[rank]);
    }
}

/// What --backend may be here.
std::vector<std::string> backends() {
    std::vector<std::string> out{"staged"};
    if (latpar::cuda::device_count() > 1) out.emplace_back("auto");
    return out;
}

/// What the report then calls it.
std::string name_of(const std::string& backend, const std::string& ranks, int count) {
#if defined(LATPAR_GENERATE_NCCL)
    if (backend == "auto" && count > 1 && count <= latpar::cuda::device_count()) return "nccl";
#endif
    return ranks + "+staged";
}

}  // namespace

TEST_CASE("GPUs sample what the processor does, along every axis") {
    const workplace at;
    struct job {
        std::string arguments;
        double against_one_rank;  // relative error; below 0: that of the policy
        double against_processor = rounding;
    };
    // Where predictions travel in bf16, what differs by a rounding in float32 may be rounded to
    // either neighbour: steps of 2^-8 for a few elements, 3e-4 of the whole latent when measured.
    constexpr double of_the_wire = 1e-3;
    for (const job& j :
         {job{clip, 0}, job{clip + "--mesh guidance=2", 0},
          job{clip + "--mesh ulysses=2", rounding}, job{clip + "--mesh ring=2", rounding},
          job{clip + "--mesh latent=2", -1}, job{clip + "--mesh step=2 --warm-up 1", -1},
          job{clip + "--batch-step 2 --warm-up 1", -1},
          job{clip + "--mesh guidance=2,latent=2 --wire-prediction bf16", -1, of_the_wire},
          job{clip + "--mesh ring=2,ulysses=2", rounding}, job{video + "--mesh stage=2", 0},
          job{video + "--mesh stage=2,guidance=2", 0},
          job{video + "--noise independent --mesh stage=2,ulysses=2", rounding}}) {
        const result cpu = sampled(at, j.arguments + " --compare-serial");
        const auto policy_error = cpu.report.at("relative_error").get<double>();
        for (const std::string& backend : backends()) {
            CAPTURE(j.arguments, backend);
            const result gpu =
                sampled(at, j.arguments + " --compare-serial --device cuda --backend " + backend);
            check_alike(gpu.report, cpu.report);
            CHECK(gpu.report.at("backend") ==
                  name_of(backend, "threads", gpu.report.at("ranks").get<int>()));
            CHECK(relative_l2(gpu.latent, cpu.latent) < j.against_processor);
            const auto error = gpu.report.at("relative_error").get<double>();
            if (j.against_one_rank < 0) {
                CHECK(std::abs(error - policy_error) < 2 * j.against_processor);
            } else {
                CHECK(error <= j.against_one_rank);
            }
        }
    }
}

TEST_CASE("bf16 on a GPU is near, and says what it is") {
    const workplace at;
    const result cpu = sampled(at, clip);
    for (const std::string mesh : {"", "--mesh ulysses=2 --backend staged"}) {
        CAPTURE(mesh);
        const result gpu = sampled(at, clip + mesh + " --device cuda --precision bf16");
        CHECK(gpu.report.at("precision") == "bf16");
        // Eight bits of a number are kept where float32 keeps 24: that is seen, and no more.
        const double error = relative_l2(gpu.latent, cpu.latent);
        CHECK(error > rounding);
        CHECK(error < 0.2);
    }
    const result stages =
        sampled(at, video + "--mesh stage=2 --backend staged --device cuda --precision bf16");
    CHECK(stages.report.at("bytes").at("planned") == stages.report.at("bytes").at("total"));
}

TEST_CASE("a video that was stopped goes on, on a GPU or off it") {
    const workplace at;
    const std::string unipc = video + "--scheduler unipc_flow --backend staged --device cuda ";
    const result whole = sampled(at, unipc + "--mesh stage=1");
    const std::string state = at.file("state");
    REQUIRE(run(at, unipc + "--mesh stage=2 --stop-after 4 --save-state " + state).status == 0);
    const result rest = sampled(at, unipc + "--mesh stage=2 --compare-serial --resume " + state);
    CHECK(rest.report.at("relative_error") == 0);
    const auto last = [&](const std::vector<float>& from) {
        const std::size_t channels = whole.report.at("latent")[0];
        const std::size_t all = from.size() / channels;
        const std::size_t part = rest.latent.size() / channels;
        std::vector<float> out;
        for (std::size_t c = 0; c < channels; ++c) {
            out.insert(out.end(), from.begin() + static_cast<std::ptrdiff_t>((c + 1) * all - part),
                       from.begin() + static_cast<std::ptrdiff_t>((c + 1) * all));
        }
        return out;
    };
    CHECK(rest.latent.size() < whole.latent.size());
    CHECK(rest.latent == last(whole.latent));
    const result there =
        sampled(at, video + "--scheduler unipc_flow --mesh stage=2 --resume " + state);
    CHECK(relative_l2(there.latent, rest.latent) < rounding);
    const outcome other = run(at, unipc + "--precision bf16 --resume " + state + " --mesh stage=2");
    CHECK(other.status != 0);
    CHECK_THAT(other.text, ContainsSubstring("--precision f32, this one has bf16"));
}

TEST_CASE("ranks that share a device have no NCCL") {
    const workplace at;
    const std::string ranks = std::to_string(latpar::cuda::device_count() + 1);
    const outcome out = run(at, clip + "--device cuda --backend nccl --mesh latent=" + ranks);
    INFO(out.text);
    CHECK(out.status != 0);
    CHECK_THAT(out.text, ContainsSubstring("--backend"));
}

#if defined(LATPAR_MPIEXEC)
TEST_CASE("processes on GPUs write the file that threads write") {
    const workplace at;
    for (const std::string& job :
         {clip + "--mesh latent=2", clip + "--mesh ring=2", video + "--mesh stage=2"}) {
        const result threads = sampled(at, job + " --device cuda --backend staged");
        for (const std::string& backend : backends()) {
            CAPTURE(job, backend);
            const result processes = sampled(at, job + " --device cuda --backend " + backend,
                                             "timeout 120 " LATPAR_MPIEXEC " 2 ");
            CHECK(processes.latent == threads.latent);
            CHECK(processes.report.at("bytes") == threads.report.at("bytes"));
            const std::string told = processes.report.at("backend");
            CHECK((told == name_of(backend, "mpi", 2) ||
                   told == "mpi"));  // an MPI that reaches devices itself
        }
    }
}
#endif
