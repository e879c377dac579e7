// SPDX-License-Identifier: Apache-2.0
// The Wan transformer with its tokens on several thread ranks.
#include "wan_on_mesh.hpp"

#include <latpar/comm/thread_team.hpp>

#include <support/catch.hpp>
#include <support/expect.hpp>

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

TEST_CASE("more ranks than tokens") {
    const auto weights = small_model();
    wan::transformer<> whole(weights, executor_of(1));
    set_texts(whole);
    const latent z = filled_latent({1, 4, 1, 4, 4}, 1);
    const call at(z, 300);
    const auto expected = predicted(whole, z, at.info);
    thread_team(6).run([&](thread_communicator& world) {
        mesh<thread_communicator> axes(world, {{"ring", 3}, {"ulysses", 2}});
        auto model = spread_model(weights, axes);
        set_texts(model);
        EXPECT(relative_l2(predicted(model, z, at.info), expected) < 1e-5);
    });
}

TEST_CASE("a rank whose model throws outside of its attention stops those that share its tokens") {
    const auto weights = small_model();
    const latent z = filled_latent({1, 4, 3, 8, 8}, 1);
    const call at(z, 300);
    // In the whole model, and in each stage.
    for (const char* where : {"whole", "prepare", "embed", "layers", "head"}) {
        CAPTURE(where);
        std::vector<std::string> messages(4);
        thread_team(4).run([&](thread_communicator& world) {
            mesh<thread_communicator> axes(world, {{"ring", 2}, {"ulysses", 2}});
            auto model = spread_model(weights, axes);
            const std::string_view stage = where;
            // No text, or no hidden tensor.
            const bool is_odd = world.rank() == 2;
            if (!is_odd || (stage != "whole" && stage != "prepare")) set_texts(model);
            try {
                latent prediction({1, 3, 3, 8, 8});
                if (stage == "whole") {
                    model(z.view(), at.info, prediction.view(), {});
                    return;
                }
                auto context = model.prepare(at.info, {});
                const auto form = model.signature(1, at.info.window.extent)[0];
                tensor<3> memory(form.extents, form.type);
                const hidden_view hidden = memory.view();
                const auto of = [&](std::string_view name) {
                    return std::span<const hidden_view>(&hidden, is_odd && stage == name ? 0 : 1);
                };
                model.embed(z.view(), context, of("embed"), {});
                model.layers(0, model.layer_count(), context, of("layers"), nullptr, {});
                model.head(context, of("head"), prediction.view(), {});
            } catch (const std::exception& error) {
                messages[static_cast<std::size_t>(world.rank())] = error.what();
            }
        });
        for (const std::string& text : messages) {
            CHECK_FALSE(messages[2].empty());
            CHECK_THAT(text, ContainsSubstring(messages[2]));
        }
    }
}

TEST_CASE("a window that cannot be planned is refused each time it comes") {
    const auto weights = small_model();
    const auto heads = static_cast<int>(weights->config.num_attention_heads);
    thread_team(heads + 1).run([&](thread_communicator& world) {
        mesh<thread_communicator> axes(world, {{"ring", 1}, {"ulysses", heads + 1}});
        wan::sequence_parallel<thread_communicator> attention(
            weights->config, executor_of(1), axes.axis("ulysses"), axes.axis("ring"));
        for (int again = 0; again < 2; ++again) {
            std::string text;
            try {
                attention.begin(12);
            } catch (const usage_error& error) {
                text = error.what();
            }
            EXPECT(text.find("heads cannot be spread") != std::string::npos);
        }
    });
}

TEST_CASE("a rank whose model throws stops those that share its tokens") {
    const auto weights = small_model();
    std::vector<std::string> messages(4);
    thread_team(4).run([&](thread_communicator& world) {
        mesh<thread_communicator> axes(world, {{"ring", 2}, {"ulysses", 2}});
        auto model = spread_model(weights, axes);
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
