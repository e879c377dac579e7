// SPDX-License-Identifier: Apache-2.0
// A feature cache where ranks share the tokens: in the staged Wan transformer, and in DualParal.
#include "wan_stages_on_mesh.hpp"

#include <latpar/comm/thread_team.hpp>

#include <support/catch.hpp>
#include <support/expect.hpp>
#include <support/messages_of.hpp>

using namespace latpar;

namespace {

/// A window of some frames, of which the cache is to keep some.
struct staged_window {
    index_t frames;
    index_t first_kept;
    index_t kept;
};

/// Windows of 24 to 30 tokens: the cache is lent from each to the next.
const std::vector<staged_window> windows{{5, 0, 2}, {5, 2, 2}, {4, 1, 1}, {5, 3, 2},
                                         {5, 0, 0}, {4, 0, 2}, {5, 2, 1}};
constexpr extents3 largest{5, 6, 4};

/// The prediction for both branches in one window, a few layers at a time.
template <class Model>
std::vector<float> staged(Model& model, std::size_t number, wan::feature_cache* cache) {
    const staged_window& at = windows[number];
    const latent z = filled_latent({2, 4, at.frames, 6, 4}, static_cast<float>(number));
    call info(z, 900 - 100 * static_cast<double>(number));
    info.samples[1].branch = guidance_branch::unconditional;
    if (cache) cache->keep(at.first_kept, at.kept);
    auto context = model.prepare(info.info, {});
    tensor<3> memory(model.signature(2, info.info.window.extent)[0].extents);
    const std::array hidden{memory.view()};
    model.embed(z.view(), context, hidden, {});
    model.layers(0, 1, context, hidden, cache, {});
    model.layers(1, 4, context, hidden, cache, {});
    latent prediction(z.view().extents);
    model.head(context, hidden, prediction.view(), {});
    const auto values = prediction.elements<float>();
    return {values.begin(), values.end()};
}

const std::vector<guidance_branch> branches{guidance_branch::conditional,
                                            guidance_branch::unconditional};

}  // namespace

TEST_CASE("a window on several ranks is lent what the window before it kept on several") {
    std::vector<std::vector<float>> expected;
    {
        wan::transformer<> whole(staged_model(), executor_of(1));
        set_texts(whole);
        wan::feature_cache cache(whole.plan_cache(0, 4, branches, 2, largest));
        for (std::size_t i = 0; i < windows.size(); ++i) {
            expected.push_back(staged(whole, i, &cache));
            const bool is_lent = i > 0 && windows[i - 1].kept > 0;
            const auto alone = staged(whole, i, nullptr);
            // One row too few or at another position would show.
            CHECK((relative_l2(expected.back(), alone) > 1e-3) == is_lent);
        }
    }
    for (const mesh_shape& shape : std::vector<mesh_shape>{
             {{"ulysses", 1}},
             {{"ulysses", 2}},
             {{"ring", 2}},
             {{"ulysses", 3}},
             {{"ring", 3}},
             {{"ulysses", 4}},
             {{"ring", 4}},
             {{"ring", 2}, {"ulysses", 2}},
             {{"ring", 7}},
         }) {
        CAPTURE(to_string(shape));
        thread_team(shape.size()).run([&](thread_communicator& world) {
            mesh<metered<thread_communicator>> axes(mesh<thread_communicator>(world, shape));
            counting_resource memory;
            auto model = spread_stages(axes, {&memory, memory_space::host});
            const int ulysses = axes.degree("ulysses");
            const int ring = axes.degree("ring");
            const int rank = axes.coordinate("ring") * ulysses + axes.coordinate("ulysses");
            const auto cache_plan = model.plan_cache(0, 4, branches, 2, largest);
            const auto own = layer::even_tokens(30, world.size())[static_cast<std::size_t>(rank)];
            EXPECT(cache_plan.tokens == std::min<index_t>(12, own));
            wan::feature_cache cache(cache_plan);
            std::map<std::string, index_t> planned;
            index_t taken = 0;
            index_t said = 0;
            for (const bool again : {false, true}) {
                cache.clear();
                for (std::size_t i = 0; i < windows.size(); ++i) {
                    EXPECT(relative_l2(staged(model, i, &cache), expected[i]) < 1e-5);
                    std::vector<index_t> key_only;
                    if (i > 0) {
                        const staged_window& before = windows[i - 1];
                        key_only = layer::tokens_within(
                            layer::even_tokens(6 * before.frames, world.size()),
                            {6 * before.first_kept, 6 * (before.first_kept + before.kept)});
                    }
                    const auto shape_of = wan::transformer_shape_of(staged_model()->config);
                    const auto plan = layer::plan_forward(shape_of, {windows[i].frames, 6, 4},
                                                          ulysses, ring, key_only);
                    for (const char* axis : {"ulysses", "ring"}) {
                        planned[axis] += 2 * plan.bytes_sent_by(rank, axis);
                        EXPECT(axes.axis(axis).account().total().bytes_sent == planned[axis]);
                    }
                }
                const index_t control = axes.axis("ulysses").account().control_bytes() +
                                        axes.axis("ring").account().control_bytes();
                // What was agreed on once is used again, with the memory that it took.
                if (again) EXPECT(memory.allocations() == taken && control == said);
                taken = memory.allocations();
                said = control;
            }
        });
    }
}

TEST_CASE("ranks know which rows the others are lent") {
    // Of 30 tokens ranks have [0, 7), [7, 15), [15, 22) and [22, 30).
    const auto lent = [](index_t origin, index_t frames) {
        return wan::lent_rows({{frames, 3, 2}, 0, 0, origin, 30}, 4);
    };
    CHECK(lent(0, 2) == std::vector<index_t>{7, 5, 0, 0});
    CHECK(lent(12, 2) == std::vector<index_t>{0, 3, 7, 2});
    CHECK(lent(18, 1) == std::vector<index_t>{0, 0, 4, 2});
    CHECK(wan::lent_rows({}, 3) == std::vector<index_t>(3, 0));
    // Each keeps those, and no others.
    thread_team(4).run([&](thread_communicator& world) {
        mesh<thread_communicator> axes(world, {{"ulysses", 4}});
        auto model = spread_stages(axes);
        wan::feature_cache cache(model.plan_cache(0, 4, branches, 2, largest));
        static_cast<void>(staged(model, 1, &cache));
        const std::array<index_t, 5> ends{0, 0, 3, 10, 12};
        const auto rank = static_cast<std::size_t>(world.rank());
        for (const guidance_branch branch : branches) {
            const feature_rows rows = cache.rows({3, branch});
            EXPECT(rows == feature_rows{{2, 3, 2}, ends[rank], ends[rank + 1], 12, 30});
        }
    });
}

TEST_CASE("DualParal's stages are groups of ranks that share the tokens") {
    for (const index_t cat : {2, 0}) {
        staged_video video;
        video.options.cat_latents = cat;
        video.window[0] = 3 + cat;
        const auto expected = video.expected();
        for (const mesh_shape& shape : std::vector<mesh_shape>{
                 {{"stage", 2}, {"ulysses", 2}},
                 {{"stage", 3}, {"ulysses", 2}},
                 {{"stage", 1}, {"ulysses", 2}},
                 {{"stage", 2}, {"ulysses", 1}},
                 {{"stage", 2}, {"ulysses", 4}},
                 {{"stage", 2}, {"ring", 2}},
                 {{"stage", 2}, {"ring", 2}, {"ulysses", 2}},
             }) {
            for (const bool takes_mesh : {false, true}) {
                CAPTURE(cat, to_string(shape), takes_mesh);
                std::vector<std::string> verdicts(static_cast<std::size_t>(shape.size()));
                thread_team(shape.size()).run([&](thread_communicator& world) {
                    verdicts[static_cast<std::size_t>(world.rank())] =
                        video_on_mesh(world, shape, video, expected, takes_mesh);
                });
                for (const std::string& text : verdicts) CHECK(text == "");
            }
        }
    }
}

TEST_CASE("a rank of a stage that throws stops all ranks of all pipelines") {
    const staged_video video;
    const mesh_shape shape{{"stage", 2}, {"ulysses", 2}};
    for (const bool takes_mesh : {false, true}) {
        for (int failing = 0; failing < 4; ++failing) {
            CAPTURE(takes_mesh, failing);
            for (const std::string& text : messages_of(4, [&](thread_communicator& world) {
                     mesh<thread_communicator> axes(world, shape);
                     auto model = spread_stages(axes, {}, world.rank() != failing);
                     const auto plan = video.plan(model, 2);
                     auto loop = takes_mesh ? loop::dual_paral(model, axes, video.schedule,
                                                               video.rule, plan)
                                            : loop::dual_paral(model, axes.axis("stage"),
                                                               video.schedule, video.rule, plan);
                     static_cast<void>(video.run(loop));
                 })) {
                CHECK_THAT(text, ContainsSubstring("no text was set"));
            }
        }
    }
}
