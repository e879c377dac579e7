// SPDX-License-Identifier: Apache-2.0
// Where latpar-generate computes: what it refuses, whatever the machine has.
#include <examples/generate_run.hpp>

#if defined(LATPAR_GENERATE_CUDA)
#include <latpar/cuda/device.hpp>
#endif

namespace {

void refused(const workplace& at, const std::string& arguments, const std::string& remedy,
             const std::string& launcher = "") {
    const outcome out = run(at, arguments, launcher);
    INFO(arguments << '\n' << out.text);
    CHECK(out.status != 0);
    CHECK_THAT(out.text, ContainsSubstring(remedy));
}

}  // namespace

TEST_CASE("what belongs to another device is refused") {
    const workplace at;
    refused(at, at.tiny() + "--precision bf16", "add --device cuda");
    refused(at, at.tiny() + "--precision f16 --device cuda", "bf16");
    refused(at, at.tiny() + "--backend staged", "add --device cuda");
    refused(at, at.tiny() + "--backend ib --device cuda", "nccl");
    refused(at, at.tiny() + "--device cuda --threads 2", "leave one of them out");
    refused(at, at.tiny() + "--device gpu", "cuda");
    // The default may be said aloud.
    CHECK(run(at, at.tiny() + "--device cpu --precision f32 --quiet").status == 0);
}

#if defined(LATPAR_GENERATE_CUDA)
TEST_CASE("without a device every rank refuses it, before anything runs") {
    if (latpar::cuda::device_count() > 0) return;
    const workplace at;
    const std::string output = at.file("a.safetensors");
    for (const std::string mesh : {"", "--mesh latent=2", "--mesh stage=2 --total-latents 12"}) {
        // What it would find out later is not looked at.
        refused(at,
                mesh + " --weights " + at.file("text.safetensors") + " --device cuda --output " +
                    output,
                "no CUDA device");
    }
    CHECK_FALSE(std::filesystem::exists(output));
#if defined(LATPAR_MPIEXEC)
    refused(at, at.tiny() + "--device cuda --mesh latent=2", "ranks 0, 1: --device cuda",
            LATPAR_MPIEXEC " 2 ");
#endif
}

TEST_CASE("a plan for GPUs needs none, and counts what the precision takes") {
    const workplace at;
    const auto plan = [&](const std::string& arguments) {
        const outcome out = run(at, at.tiny() + arguments + " --plan=json");
        INFO(out.text);
        REQUIRE(out.status == 0);
        return nlohmann::json::parse(out.text);
    };
    const std::string spread = "--mesh ulysses=2 ";
    CHECK(plan(spread).at("bytes") == plan(spread + "--device cuda").at("bytes"));
    const auto bytes = [&](const std::string& precision, const char* axis) {
        return plan(spread + "--device cuda --precision " + precision)
            .at("axes")
            .at(axis)
            .at("bytes")
            .get<latpar::index_t>();
    };
    // Heads travel in the model's precision, the rows of the prediction in f32.
    CHECK(bytes("bf16", "ulysses") < bytes("f32", "ulysses"));
    CHECK(2 * bytes("bf16", "ulysses") > bytes("f32", "ulysses"));

    const std::string stages = "--mesh stage=2 --block-latents 4 --cat-latents 2 ";
    const auto of = [&](const std::string& precision, const char* figure) {
        return plan(stages + "--device cuda --precision " + precision)
            .at(figure)
            .at(0)
            .get<latpar::index_t>();
    };
    // The cache keeps keys and values in the model's precision.
    CHECK(of("bf16", "workspace_bytes") < of("f32", "workspace_bytes"));
    CHECK(of("bf16", "weight_bytes") < of("f32", "weight_bytes"));
}
#else
TEST_CASE("a build without GPUs says how to have one") {
    const workplace at;
    refused(at, at.tiny() + "--device cuda", "-DLATPAR_ENABLE_CUDA=ON");
    refused(at, at.tiny() + "--device cuda --plan", "-DLATPAR_ENABLE_CUDA=ON");
}
#endif
