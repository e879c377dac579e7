// SPDX-License-Identifier: Apache-2.0
// The planned memory of the Wan transformer, whole and in the stages of DualParal: all that its
// weights, its executor and the loop take.
#include "wan_support.hpp"

#include <latpar/comm/thread_team.hpp>
#include <latpar/loop/dual_paral.hpp>
#include <latpar/schedule/by_name.hpp>

#include <support/catch.hpp>
#include <support/expect.hpp>
#include <wan/memory_plan.hpp>

#include <deque>

using namespace latpar;

namespace {

constexpr index_t text_tokens = 5 + 3;  // those of set_texts

constexpr std::string_view deep_config =
    R"({"num_attention_heads":2,"attention_head_dim":14,"in_channels":4,"out_channels":4,)"
    R"("text_dim":8,"freq_dim":16,"ffn_dim":112,"num_layers":24,"rope_max_seq_len":32})";

/// An instance that knows its shape only.
wan::transformer<> shape_of(const wan::config& config) {
    return wan::transformer<>(std::make_shared<wan::weights>(config, wan::layer_range{}),
                              executor_of(1));
}

struct video {
    index_t block_latents;
    index_t cat_latents;
    index_t total_latents;
    index_t steps;
    int threads;
};

/// The most that each rank took, and what was planned.
struct peaks {
    std::vector<index_t> taken, planned, weights;
};

peaks sample_in_stages(const std::filesystem::path& file, const video& v, int stages) {
    const auto config = wan::parse_config(deep_config, "deep");
    const auto rule = guidance_rule::classifier_free(3.0);
    const auto schedule = schedule::by_name("unipc_flow", v.steps);
    const extents3 window{v.block_latents + v.cat_latents, 6, 8};
    loop::dual_paral_options options;
    options.block_latents = v.block_latents;
    options.cat_latents = v.cat_latents;
    options.total_latents = v.total_latents;
    const auto plan = plan_dual_paral(
        latent_problem::of({1, 4, window[0], window[1], window[2]}, schedule), options,
        loop::describe_stages(shape_of(config), rule, window, v.cat_latents), stages);
    std::deque<counting_resource> memory(static_cast<std::size_t>(stages));
    peaks out;
    thread_team(stages).run([&](thread_communicator& comm) {
        const auto rank = static_cast<std::size_t>(comm.rank());
        const memory_source source{&memory[rank], memory_space::host};
        const auto& own = plan.stages[rank];
        const auto weights = wan::load_weights(file, {{own.first, own.last}, source});
        wan::transformer model(weights, executor_of(v.threads, "auto", source));
        set_texts(model);
        loop::dual_paral loop(model, comm, schedule, rule, plan, kernel::host{}, source);
        loop.run(coordinated_noise(1, v.block_latents, v.cat_latents),
                 [](const_latent_view, index_t) {});
        EXPECT(loop.done());
    });
    for (int rank = 0; rank < stages; ++rank) {
        const auto& own = plan.stages[static_cast<std::size_t>(rank)];
        const auto model = wan::plan_memory(
            config, {{own.first, own.last}, window, v.cat_latents, text_tokens, v.threads, true});
        out.taken.push_back(memory[static_cast<std::size_t>(rank)].peak_bytes());
        out.planned.push_back(plan.workspace_bytes(rank) + model.total());
        out.weights.push_back(model.weights);
    }
    return out;
}

}  // namespace

TEST_CASE("each stage takes what was planned for it, and its share of the weights") {
    const temporary_folder folder;
    const auto file = folder / "deep.safetensors";
    wan::write_random_model(file, deep_config, 1);
    const index_t all = wan::weight_bytes(wan::parse_config(deep_config, "deep"), {0, -1});
    for (const video& v : {video{3, 2, 11, 3, 1}, video{2, 2, 6, 4, 2}, video{4, 0, 8, 2, 1}}) {
        for (const int stages : {1, 2, 3, 4}) {
            const peaks found = sample_in_stages(file, v, stages);
            CAPTURE(stages, v.block_latents, v.cat_latents, v.threads);
            CHECK(found.taken == found.planned);
            // Times and texts are embedded on every rank: 2.2 % of the whole.
            for (const index_t weights : found.weights) {
                CHECK(static_cast<double>(stages * weights) ==
                      Approx(static_cast<double>(all)).epsilon(0.023 * stages));
            }
        }
    }
}

TEST_CASE("the whole model takes what was planned, whatever the window and the threads") {
    const temporary_folder folder;
    wan::write_random_model(folder / "small.safetensors", small_config, 1);
    for (const int threads : {1, 3}) {
        for (const extents3 window : {extents3{1, 2, 2}, extents3{3, 8, 6}, extents3{5, 20, 18}}) {
            counting_resource memory;
            const memory_source source{&memory, memory_space::host};
            const auto weights = wan::load_weights(folder / "small.safetensors", {{0, -1}, source});
            wan::transformer model(weights, executor_of(threads, "auto", source));
            set_texts(model);
            const latent z = filled_latent({2, 4, window[0], window[1], window[2]}, 1);
            call at(z, 321);
            at.samples[1].branch = guidance_branch::unconditional;
            static_cast<void>(predicted(model, z, at.info));
            const auto plan =
                wan::plan_memory(weights->config, {{0, -1}, window, 0, text_tokens, threads});
            CAPTURE(threads, window[0]);
            CHECK(memory.peak_bytes() == plan.total());
            CHECK(memory.bytes_in_use() == plan.total());
        }
    }
    const auto config = wan::parse_config(small_config, "small");
    CHECK_THROWS_WITH(wan::plan_memory(config, {{0, 4}, {1, 2, 2}}), ContainsSubstring("[0, 4)"));
    CHECK_THROWS_WITH(wan::plan_memory(config, {{0, 3}, {1, 3, 2}}), ContainsSubstring("1x3x2"));
}

TEST_CASE("the weights of the published models are their parameters") {
    const auto published = [](int heads, int ffn, int layers) {
        return wan::parse_config(
            detail::concat(R"({"num_attention_heads":)", heads, R"(,"attention_head_dim":128,)",
                           R"("in_channels":16,"out_channels":16,"text_dim":4096,"freq_dim":256,)",
                           R"("ffn_dim":)", ffn, R"(,"num_layers":)", layers, '}'),
            "published");
    };
    // Every tensor of theirs is a multiple of 64 bytes.
    CHECK(wan::weight_bytes(published(12, 8960, 30), {0, -1}) == 4 * index_t{1418996800});
    CHECK(wan::weight_bytes(published(40, 13824, 40), {0, -1}) == 4 * index_t{14288491584});
}

TEST_CASE("an executor that could not get its scratch memory works on with less") {
    struct limited final : std::pmr::memory_resource {
        void* do_allocate(std::size_t bytes, std::size_t alignment) override {
            if (bytes > 1 << 20) throw std::bad_alloc();
            return std::pmr::new_delete_resource()->allocate(bytes, alignment);
        }
        void do_deallocate(void* data, std::size_t bytes, std::size_t alignment) override {
            std::pmr::new_delete_resource()->deallocate(data, bytes, alignment);
        }
        [[nodiscard]] bool do_is_equal(
            const std::pmr::memory_resource& other) const noexcept override {
            return this == &other;
        }
    } memory;
    wan::executor executor({.threads = 1, .memory = {&memory, memory_space::host}});
    float sum = 0;
    const auto use = [&](index_t floats) {
        executor.run(1, floats, [&](index_t, float* scratch) {
            scratch[floats - 1] = 2;
            sum += scratch[floats - 1];
        });
    };
    use(1000);
    CHECK_THROWS_AS(use(1 << 20), std::bad_alloc);
    use(1000);
    CHECK(sum == 4);
}
