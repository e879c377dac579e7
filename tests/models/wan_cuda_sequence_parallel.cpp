// SPDX-License-Identifier: Apache-2.0
// The Wan transformer on a GPU, or several ranks of it, with its tokens on a mesh of ranks.
#include "wan_cuda_support.hpp"
#include "wan_stages_on_mesh.hpp"

#include <latpar/comm/mesh.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/cuda/philox_noise.hpp>
#include <latpar/cuda/staged.hpp>
#include <latpar/layer/ulysses.hpp>

#include <support/catch.hpp>
#include <support/expect.hpp>
#include <wan/sequence_parallel.hpp>

using namespace latpar;

namespace {

using rank_communicator = cuda::staged<thread_communicator>;
using spread_attention =
    wan::sequence_parallel<rank_communicator, wan::cuda::attention, cuda::kernels>;

/// A rank's model, with texts.
wan::cuda::transformer<spread_attention> spread_on_device(device_lab& lab,
                                                          mesh<rank_communicator>& axes,
                                                          dtype type) {
    auto exec = std::make_shared<wan::cuda::executor>(
        wan::cuda::executor_options{type, lab.memory(), 4 << 20});
    wan::cuda::transformer<spread_attention> out(
        wan::cuda::upload_weights(*staged_model(), type, lab.memory()), exec,
        spread_attention(staged_model()->config, exec, axes.axis("ulysses"), axes.axis("ring")));
    set_texts(out);
    return out;
}

/// In windows that keep two of their frames for the next: what stages predict, then the whole.
template <class Model, class Upload, class Download>
std::vector<std::vector<float>> windows_of(Model& model, stream_ref stream, memory_source memory,
                                           const Upload& upload, const Download& download) {
    const std::vector branches{guidance_branch::conditional, guidance_branch::unconditional};
    typename Model::feature_cache cache(model.plan_cache(0, 4, branches, 2, {5, 6, 4}), {}, memory);
    std::vector<std::vector<float>> out;
    for (const index_t first_kept : {0, 2, 3}) {
        const latent z = filled_latent({2, 4, 5, 6, 4}, static_cast<float>(first_kept));
        call info(z, 300 + 100 * static_cast<double>(first_kept));
        info.samples[1].branch = guidance_branch::unconditional;
        cache.keep(first_kept, 2);
        const latent there = upload(z);
        auto context = model.prepare(info.info, stream);
        const auto form = model.signature(2, info.info.window.extent).at(0);
        tensor<3> rows(form.extents, form.type, memory);
        const std::array hidden{rows.view()};
        latent prediction({2, 4, 5, 6, 4}, dtype::f32, memory);
        model.embed(there.view(), context, hidden, stream);
        model.layers(0, 4, context, hidden, &cache, stream);
        model.head(context, hidden, prediction.view(), stream);
        out.push_back(download(prediction));
        model(there.view(), info.info, prediction.view(), stream);
        out.push_back(download(prediction));
    }
    return out;
}

}  // namespace

TEST_CASE("ranks that share the tokens on a GPU predict what one does") {
    wan::transformer<> host(staged_model(), executor_of(1));
    set_texts(host);
    const auto expected = windows_of(
        host, {}, {},
        [](const latent& z) {
            latent out(z.view().extents);
            kernel::host{}.copy(z.view(), out.view());
            return out;
        },
        [](const latent& z) {
            const auto values = z.elements<float>();
            return std::vector<float>(values.begin(), values.end());
        });
    for (const dtype type : {dtype::f32, dtype::bf16}) {
        for (const mesh_shape& shape : std::vector<mesh_shape>{{{"ulysses", 1}},
                                                               {{"ulysses", 2}},
                                                               {{"ring", 2}},
                                                               {{"ulysses", 3}},
                                                               {{"ring", 2}, {"ulysses", 2}}}) {
            CAPTURE(name_of(type), to_string(shape));
            thread_team(shape.size()).run([&](thread_communicator& threads) {
                rank_communicator world(threads.duplicate());
                mesh<rank_communicator> axes(world, shape);
                device_lab lab;
                auto model = spread_on_device(lab, axes, type);
                const auto found = windows_of(
                    model, lab.stream(), lab.memory(),
                    [&](const latent& z) { return uploaded(lab, z); },
                    [&](const latent& z) { return downloaded(lab, z); });
                EXPECT(found.size() == expected.size());
                for (std::size_t i = 0; i < found.size(); ++i) {
                    const double distance = relative_l2(found[i], expected[i]);
                    EXPECT(distance < (type == dtype::f32 ? 1e-5 : 2e-2));
                }
            });
        }
    }
}

TEST_CASE("Ulysses on a GPU gives the bits of one rank") {
    for (const dtype type : {dtype::f32, dtype::bf16}) {
        constexpr index_t tokens = 200;
        const layer::attention_shape shape{6, 3, 24, type, false};
        const std::array<index_t, 5> queries{1, 1, tokens, 6, 24};
        const std::array<index_t, 5> keys{1, 1, tokens, 3, 24};
        const auto rounded = [&](const std::array<index_t, 5>& extents, float seed) {
            latent out(extents, type);
            kernel::host{}.copy(filled_latent(extents, seed).view(), out.view());
            return out;
        };
        const std::array<latent, 3> inputs{rounded(queries, 1), rounded(keys, 2), rounded(keys, 3)};
        std::vector<std::byte> expected;
        for (const int ranks : {1, 2, 3}) {
            CAPTURE(name_of(type), ranks);
            const auto counts = layer::even_tokens(tokens, ranks);
            std::vector<std::byte> found(static_cast<std::size_t>(inputs[0].bytes()));
            thread_team(ranks).run([&](thread_communicator& threads) {
                rank_communicator comm(threads.duplicate());
                device_lab lab;
                layer::ulysses<wan::cuda::attention, rank_communicator, cuda::kernels> attend(
                    {}, comm, layer::plan_ulysses(shape, {counts}, ranks), {}, lab.memory());
                index_t first = 0;
                for (int r = 0; r < comm.rank(); ++r) first += counts[static_cast<std::size_t>(r)];
                const index_t own = counts[static_cast<std::size_t>(comm.rank())];
                std::array<latent, 3> parts;
                std::array<wan::heads_view, 3> views;
                for (std::size_t i = 0; i < 3; ++i) {
                    const auto from = inputs[i].view();
                    const index_t row = from.strides[2] * size_of(type);
                    parts[i] = latent({1, 1, own, from.extents[3], 24}, type, lab.memory());
                    lab.upload(parts[i].view().data,
                               {from.data + first * row, static_cast<std::size_t>(own * row)});
                    const std::array<index_t, 3> extents{own, from.extents[3], 24};
                    views[i] = {parts[i].view().data, extents, dense_strides(extents), type,
                                memory_space::cuda};
                }
                latent out({1, 1, own, 6, 24}, type, lab.memory());
                wan::heads_view out_view = views[0];
                out_view.data = out.view().data;
                attend(views[0], views[1], views[2], out_view, {}, lab.stream());
                const index_t row = 6 * 24 * size_of(type);
                lab.download(std::span(found).subspan(static_cast<std::size_t>(first * row),
                                                      static_cast<std::size_t>(own * row)),
                             out.view().data);
            });
            if (ranks == 1) expected = found;
            CHECK(found == expected);
        }
    }
}

TEST_CASE("DualParal's stages run on a GPU, and share the tokens there") {
    const staged_video video;
    const auto expected = video.expected();
    for (const mesh_shape& shape : std::vector<mesh_shape>{
             {{"stage", 1}}, {{"stage", 2}}, {{"stage", 3}}, {{"stage", 2}, {"ulysses", 2}}}) {
        CAPTURE(to_string(shape));
        std::vector<float> found;
        thread_team(shape.size()).run([&](thread_communicator& threads) {
            rank_communicator world(threads.duplicate());
            mesh<rank_communicator> axes(world, shape);
            device_lab lab;
            auto model = spread_on_device(lab, axes, dtype::f32);
            const auto plan = video.plan(model, axes.degree("stage"));
            loop::dual_paral loop(model, axes, video.schedule, video.rule, plan, cuda::kernels{},
                                  lab.memory());
            loop.run(
                cuda::coordinated_noise(7, video.options.block_latents, video.options.cat_latents),
                [&](const_latent_view block, index_t) {
                    latent dense(block.extents, dtype::f32, lab.memory());
                    cuda::kernels{}.copy(block, dense.view(), lab.stream());
                    const auto values = downloaded(lab, dense);
                    found.insert(found.end(), values.begin(), values.end());
                },
                lab.stream());
        });
        CHECK(relative_l2(found, expected) < 1e-5);
    }
}
