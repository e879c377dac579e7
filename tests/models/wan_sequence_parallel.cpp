// SPDX-License-Identifier: Apache-2.0
// The Wan transformer with its tokens on several thread ranks.
#include "wan_on_mesh.hpp"

#include <latpar/comm/thread_team.hpp>

#include <support/catch.hpp>

using namespace latpar;

namespace {

template <class F>
std::string gathered(int ranks, F&& f) {
    std::vector<std::string> verdicts(static_cast<std::size_t>(ranks));
    thread_team(ranks).run([&](thread_communicator& world) {
        verdicts[static_cast<std::size_t>(world.rank())] = f(world);
    });
    std::string out;
    for (const std::string& text : verdicts) out += text;
    return out;
}

}  // namespace

TEST_CASE("the recorded outputs come out on every mesh of ulysses and ring") {
    const auto heads =
        wan::load_weights(reference_file("wan_tiny.safetensors"))->config.num_attention_heads;
    for (const int ranks : {1, 2, 3, 4, 6, 8}) {
        for (const mesh_shape& shape : layer_meshes(ranks)) {
            if (shape.degree("ulysses") > heads) continue;
            CAPTURE(to_string(shape));
            CHECK(gathered(ranks, [&](auto& world) { return recorded_on_mesh(world, shape); }) ==
                  "");
        }
    }
}

TEST_CASE("other policies nest around a model whose tokens are spread") {
    const std::vector<mesh_shape> shapes{
        {{"latent", 2}, {"ulysses", 2}},
        {{"latent", 2}, {"ring", 2}},
        {{"guidance", 2}, {"ulysses", 3}},
        {{"step", 2}, {"ulysses", 2}},
        {{"step", 2}, {"guidance", 2}, {"ulysses", 2}},
        {{"step", 2}, {"guidance", 2}, {"latent", 2}},
        {{"step", 2}, {"latent", 2}, {"ring", 2}},
        {{"ring", 2}, {"ulysses", 3}},
    };
    for (const mesh_shape& shape : shapes) {
        CAPTURE(to_string(shape));
        CHECK(gathered(shape.size(), [&](auto& world) {
                  return nest_on_mesh(world, shape, latent_layout::replicated);
              }) == "");
    }
    for (const latent_layout layout : {latent_layout::central, latent_layout::sharded}) {
        const mesh_shape shape{{"latent", 2}, {"ulysses", 2}};
        CAPTURE(name_of(layout));
        CHECK(gathered(4, [&](auto& world) { return nest_on_mesh(world, shape, layout); }) == "");
    }
}

TEST_CASE("a rank whose model throws stops those that share its tokens") {
    const auto weights = small_model();
    std::vector<std::string> messages(4);
    thread_team(4).run([&](thread_communicator& world) {
        mesh<thread_communicator> axes(world, {{"ring", 2}, {"ulysses", 2}});
        auto exec = executor_of(1);
        using attention = wan::sequence_parallel<thread_communicator>;
        wan::transformer<attention> model(
            weights, exec,
            attention(weights->config, exec, axes.axis("ulysses"), axes.axis("ring")));
        set_texts(model);
        const latent z = filled_latent({1, 4, 3, 8, 8}, 1);
        const call at(z, 300);
        index_t calls = 0;
        const auto failing = [&](const_latent_view in, const step_info& info, latent_view out,
                                 stream_ref stream) {
            if (world.rank() == 2 && ++calls == 2) throw std::runtime_error("no memory left");
            model(in, info, out, stream);
        };
        lockstep policy(failing, std::vector{&axes.axis("ring"), &axes.axis("ulysses")},
                        extents3{3, 8, 8});
        try {
            for (int i = 0; i < 3; ++i)
                static_cast<void>([&] {
                    latent prediction({1, 3, 3, 8, 8});
                    policy(z.view(), at.info, prediction.view(), {});
                }());
        } catch (const std::exception& error) {
            messages[static_cast<std::size_t>(world.rank())] = error.what();
        }
    });
    for (const std::string& text : messages) CHECK_THAT(text, ContainsSubstring("no memory left"));
}
