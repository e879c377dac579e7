// SPDX-License-Identifier: Apache-2.0
// The bundled model through the C++ transformer, against what its trainer recorded.
#include <latpar/loop/serial.hpp>
#include <latpar/schedule/euler_flow.hpp>
#include <latpar/schedule/philox_noise.hpp>
#include <latpar/step/guided.hpp>

#include <support/catch.hpp>
#include <support/recorded.hpp>
#include <wan/transformer.hpp>

using namespace latpar;

TEST_CASE("the bundled weights predict and sample what their recording says") {
    const std::filesystem::path folder = LATPAR_MOVING_SHAPES_DIR;
    const auto recording = safetensors_file::open(folder / "sample_fixture.safetensors");
    wan::transformer<> model(wan::load_weights(folder / "moving_shapes.safetensors"),
                             std::make_shared<wan::executor>());
    model.set_text(guidance_branch::conditional, to_float32(recording.at("text_conditional")));
    model.set_text(guidance_branch::unconditional, to_float32(recording.at("text_unconditional")));

    const latent noise = recorded_latent(recording, "noise");
    const auto extents = noise.view().extents;
    const extents3 window = spatial_extents(noise.view());
    for (const auto& [branch, name] :
         {std::pair(guidance_branch::conditional, "prediction_conditional"),
          std::pair(guidance_branch::unconditional, "prediction_unconditional")}) {
        std::vector<sample_info> samples(1);
        samples[0].timestep = to_float32(recording.at("timestep")).front();
        samples[0].branch = branch;
        latent prediction(extents);
        model(noise.view(), {samples, box_of(window), window, {}}, prediction.view(), {});
        CAPTURE(name);
        CHECK(relative_l2(prediction, recorded_latent(recording, name)) < 1e-5);
    }

    guided denoiser(std::move(model), std::stod(recording.metadata().at("final_guidance")));
    loop::serial loop(
        denoiser,
        schedule::euler_flow({.steps = std::stoi(recording.metadata().at("final_steps"))}),
        extents);
    loop.start(noise.view());
    loop.run(philox_noise(0));
    latent result(extents);
    loop.collect(result.view());
    CHECK(relative_l2(result, recorded_latent(recording, "final_latent")) < 1e-4);
}
