// SPDX-License-Identifier: Apache-2.0
// The Wan transformer against the recorded outputs of the diffusers library.
#include "wan_support.hpp"

#include <support/catch.hpp>

using namespace latpar;

TEST_CASE("every recorded point is met") {
    const auto recorded = safetensors_file::open(reference_file("wan_tiny_io.safetensors"));
    const auto tiny = wan::load_weights(reference_file("wan_tiny.safetensors"));
    for (const std::string_view kernels : wan::available_kernels()) {
        wan::transformer model(tiny, executor_of(2, kernels));
        for (const std::string number : {"0.", "1.", "2."}) {
            INFO(kernels << ", input " << number);
            const auto distance = [&](std::span<const float> found, const std::string& name) {
                const double out = relative_l2(found, to_float32(recorded.at(number + name)));
                UNSCOPED_INFO(name << " " << out);
                return out;
            };
            const latent z = recorded_latent(recorded, number + "latent");
            const auto timestep = recorded.at(number + "timestep").values<float>().at(0);
            model.set_text(guidance_branch::conditional, to_float32(recorded.at(number + "text")));
            const call info(z, timestep);

            auto context = model.prepare(info.info, {});
            CHECK(distance(model.embedded_text(guidance_branch::conditional), "text_embedded") <
                  1e-5);
            CHECK(distance(context.samples[0].time, "temb") < 1e-5);
            CHECK(distance(context.samples[0].time_projection, "timestep_proj") < 1e-5);

            const auto signature = model.signature(1, info.info.window.extent);
            REQUIRE(signature.size() == 1);
            tensor<3> hidden(signature[0].extents);
            const std::array views{hidden.view()};
            model.embed(z.view(), context, views, {});
            CHECK(distance(hidden.elements<float>(), "after_patch") < 1e-5);
            model.layers(0, 1, context, views, nullptr, {});
            CHECK(distance(hidden.elements<float>(), "after_block0") < 1e-5);

            latent prediction(z.view().extents);
            model(z.view(), info.info, prediction.view(), {});
            CHECK(distance(prediction.elements<float>(), "output") < 1e-5);
        }
    }
}
