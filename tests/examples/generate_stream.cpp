// SPDX-License-Identifier: Apache-2.0
// Every policy of latpar-generate on a pretended device: no call without the rank's stream, no
// device memory taken for the host's, and the bits of the processor.
#include <latpar/comm/thread_team.hpp>

#include <examples/pretended_device.hpp>
#include <generate/run_on.hpp>
#include <support/catch.hpp>
#include <support/temporary.hpp>

#include <fstream>
#include <functional>
#include <iterator>

using namespace latpar;

namespace {

generate::options clip_on(const std::string& mesh) {
    generate::options out;
    out.mesh = mesh;
    out.frames = 6;
    out.height = 48;
    out.width = 48;
    out.steps = 4;
    out.threads = 1;
    out.quiet = true;
    out.compare_serial = true;
    out.para_step.warm_up = 1;
    out.latent_parallel.result_everywhere = false;
    out.weights = std::filesystem::path(LATPAR_MOVING_SHAPES_DIR) / "moving_shapes.safetensors";
    return out;
}

generate::options video_on(const std::string& mesh) {
    generate::options out = clip_on(mesh);
    out.scheduler = "unipc_flow";  // has a history
    out.video.block_latents = 4;
    out.video.cat_latents = 0;
    out.video.total_latents = 10;
    return out;
}

std::string content(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// What thread ranks at a kind of place write.
template <class Place>
struct result {
    generate::report figures;
    std::string file;

    explicit result(generate::options wanted) {
        const temporary_directory folder;
        wanted.outputs = {folder / "z.safetensors"};
        const generate::job j = generate::prepare(wanted);
        const std::function<bool()> never = [] { return false; };
        thread_team(generate::mesh_of(wanted).size()).run([&](thread_communicator& comm) {
            any_communicator world(comm.duplicate());
            generate::report mine;
            const auto how = generate::run_on<Place>(world, j, {"threads", 1, never}, mine);
            if (how != generate::ending::complete) throw error("it was stopped");
            if (comm.rank() == 0) figures = std::move(mine);
        });
        file = content(wanted.outputs.front());
    }
};

void check_alike(const generate::options& wanted) {
    CAPTURE(wanted.mesh, wanted.batch_step);
    const result<generate::on_host> host(wanted);
    const result<pretended::place> device(wanted);
    CHECK(device.figures.device == "pretended");
    CHECK_FALSE(host.file.empty());
    CHECK(device.file == host.file);
    CHECK(device.figures.relative_error == host.figures.relative_error);
    CHECK(device.figures.bytes_sent == host.figures.bytes_sent);
}

}  // namespace

TEST_CASE("a clip takes the rank's stream and the device's memory everywhere") {
    for (const char* mesh :
         {"", "guidance=2", "ulysses=2", "ring=2,ulysses=2", "guidance=2,latent=2", "step=2"}) {
        check_alike(clip_on(mesh));
    }
    generate::options sharded = clip_on("latent=2");
    sharded.scheduler = "unipc_flow";
    sharded.latent_parallel.layout = latent_layout::sharded;
    sharded.latent_parallel.wire_state = dtype::bf16;
    check_alike(sharded);
    generate::options rounds = clip_on("step=2,latent=2");
    rounds.scheduler = "unipc_flow";
    rounds.para_step.reuse = loop::reuse::extrapolated;
    rounds.para_step.history = loop::history::official;
    rounds.latent_parallel.layout = latent_layout::replicated;
    rounds.latent_parallel.wire_prediction = rounds.para_step.wire_prediction = dtype::bf16;
    rounds.latent_parallel.wire_state = rounds.para_step.wire_state = dtype::f16;
    check_alike(rounds);
    generate::options batches = clip_on("");
    batches.batch_step = 2;
    batches.para_step.reuse = loop::reuse::newest;
    check_alike(batches);
}

TEST_CASE("a long video does too, saved and continued") {
    for (const char* mesh : {"stage=1", "stage=2,guidance=2", "stage=2,ulysses=2"}) {
        check_alike(video_on(mesh));
    }
    generate::options narrow = video_on("stage=4");
    narrow.latent_parallel.wire_prediction = dtype::bf16;
    narrow.video.independent_noise = true;
    check_alike(narrow);

    const temporary_directory folder;
    generate::options first = video_on("stage=2");
    first.compare_serial = false;
    first.video.stop_after = 4;
    first.video.save_state = folder / "state";
    const result<pretended::place> begun(first);
    CHECK_FALSE(begun.figures.video->mean_idle_measured);
    generate::options rest = video_on("stage=2");
    rest.video.resume = folder / "state";
    check_alike(rest);
}
