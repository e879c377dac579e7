// SPDX-License-Identifier: Apache-2.0
// DualParal around the Wan transformer on thread ranks: against its recordings, against itself.
#include <latpar/comm/mesh.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/schedule/ddim.hpp>

#include <loop/dual_paral_reference.hpp>
#include <support/catch.hpp>
#include <support/direct_threads.hpp>
#include <support/expect.hpp>
#include <support/in_order_communicator.hpp>
#include <support/logged_communicator.hpp>
#include <support/own_stream.hpp>
#include <support/temporary.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <thread>

using namespace latpar;

namespace {

std::vector<video_report> on_threads(const recorded_dual_paral& recorded, const recorded_video& c,
                                     int stages) {
    std::vector<video_report> out(static_cast<std::size_t>(stages));
    thread_team(stages).run([&](thread_communicator& comm) {
        out[static_cast<std::size_t>(comm.rank())] = recorded.sample(comm, c);
    });
    return out;
}

/// The Wan transformer with ten small layers, so that it has many stages.
std::shared_ptr<const wan::weights> deep_model() {
    static const auto weights = [] {
        const temporary_directory folder;
        const auto file = folder / "deep.safetensors";
        wan::write_random_model(
            file,
            R"({"num_attention_heads":1,"attention_head_dim":12,"in_channels":2,"out_channels":2,)"
            R"("text_dim":4,"freq_dim":8,"ffn_dim":16,"num_layers":10,"rope_max_seq_len":64})",
            1);
        return wan::load_weights(file);
    }();
    return weights;
}

struct small_video {
    linear_scheduler schedule = schedule::by_name("unipc_flow", 5);
    loop::dual_paral_options options{3, 2, 14, {}, dtype::f32};
    guidance_rule rule = guidance_rule::classifier_free(3.0);

    [[nodiscard]] wan::transformer<> model() const {
        wan::transformer<> out(
            deep_model(), std::make_shared<wan::executor>(wan::executor_options{.threads = 1}));
        const std::vector<float> c{0.5f, 1, -1, 0.25f};
        const std::vector<float> u{-0.5f, 0, 1, 2};
        out.set_text(guidance_branch::conditional, c);
        out.set_text(guidance_branch::unconditional, u);
        out.set_text(guidance_branch::image, std::vector<float>{1, -2, 0.5f, 0});
        return out;
    }
    [[nodiscard]] loop::dual_paral_plan plan(int stages, int guidance_ranks = 1) const {
        const index_t window = options.block_latents + options.cat_latents;
        const auto one = model();
        return plan_dual_paral(
            latent_problem::of({1, 2, window, 4, 4}, schedule), options,
            loop::describe_stages(one, rule, {window, 4, 4}, options.cat_latents, guidance_ranks),
            stages);
    }
    [[nodiscard]] coordinated_noise noise() const {
        return {7, options.block_latents, options.cat_latents};
    }
};

/// Takes the frames that are handed out.
struct frame_sink {
    std::vector<float>* frames;
    void operator()(const_latent_view block, index_t) const {
        for (index_t t = 0; t < block.extents[2]; ++t)
            for (index_t c = 0; c < block.extents[1]; ++c)
                for (index_t h = 0; h < block.extents[3]; ++h)
                    for (index_t w = 0; w < block.extents[4]; ++w)
                        frames->push_back(block.as<float>()[block.offset({0, c, t, h, w})]);
    }
};

std::vector<float> sample(const small_video& v, int stages) {
    std::vector<float> out;
    thread_team(stages).run([&](thread_communicator& comm) {
        auto model = v.model();
        loop::dual_paral loop(model, comm, v.schedule, v.rule, v.plan(stages));
        loop.run(v.noise(), frame_sink{&out}, own_stream{});
        EXPECT(loop.done());
    });
    return out;
}

/// A communicator whose every call may dawdle.
class delayed {
public:
    delayed(thread_communicator inner, unsigned seed) : inner_(std::move(inner)), random_(seed) {}

    [[nodiscard]] int rank() const noexcept { return inner_.rank(); }
    [[nodiscard]] int size() const noexcept { return inner_.size(); }
    [[nodiscard]] bool reaches(memory_space space) const noexcept { return inner_.reaches(space); }
    [[nodiscard]] auto start_exchange(std::span<const send_op> sends,
                                      std::span<const recv_op> recvs, stream_ref stream = {}) {
        dawdle();
        auto request = inner_.start_exchange(sends, recvs, stream);
        dawdle();
        return request;
    }
    [[nodiscard]] std::optional<delayed> split(int color, int key) {
        auto part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return delayed(std::move(*part), static_cast<unsigned>(random_()));
    }
    [[nodiscard]] delayed duplicate() {
        return {inner_.duplicate(), static_cast<unsigned>(random_())};
    }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner_.abort(reason); }

private:
    void dawdle() {
        if (random_() % 3 == 0) {
            std::this_thread::sleep_for(std::chrono::microseconds(random_() % 400));
        }
    }

    thread_communicator inner_;
    std::mt19937 random_;
};
static_assert(communicator<delayed>);

/// A model whose first stage works on a window only when the others have the one before.
class hesitant : public wan::transformer<> {
public:
    hesitant(wan::transformer<> model, std::vector<std::atomic<int>>& begun, int stage)
        : transformer(std::move(model)), begun_(&begun), stage_(static_cast<std::size_t>(stage)) {}

    void layers(index_t first, index_t last, context& ctx, std::span<const hidden_view> hidden,
                feature_cache* cache, stream_ref stream) {
        using clock = std::chrono::steady_clock;
        const auto limit = clock::now() + std::chrono::seconds(20);
        const int before = (*begun_)[stage_]++;
        const auto is_behind = [&](const std::atomic<int>& other) { return other < before; };
        while (stage_ == 0 && std::ranges::any_of(*begun_, is_behind)) {
            EXPECT(clock::now() < limit);
            std::this_thread::yield();
        }
        transformer::layers(first, last, ctx, hidden, cache, stream);
    }

private:
    std::vector<std::atomic<int>>* begun_;
    std::size_t stage_;
};

}  // namespace

TEST_CASE("the recorded videos come out, with the same bits for any number of stages") {
    const recorded_dual_paral recorded;
    for (const recorded_video& c : recorded.videos()) {
        CAPTURE(c.name);
        self_communicator alone;
        const auto expected = recorded.sample(alone, c);
        CHECK(recorded.distance(c, "video", expected.video) < 5e-4);
        if (c.name != "unipc") {
            CHECK(recorded.distance(c, "video_official_run", expected.video) < 1e-2);
        }
        for (int stages = 1; stages <= 4; ++stages) {
            CAPTURE(stages);
            const auto reports = on_threads(recorded, c, stages);
            CHECK(reports[0].video == expected.video);
            const auto plan = recorded.plan(c, stages);
            for (int rank = 0; rank < stages; ++rank) {
                const auto& report = reports[static_cast<std::size_t>(rank)];
                CHECK(report.sent_bytes == plan.bytes_sent_by(rank, plan.iterations()));
                CHECK(report.taken_bytes == plan.workspace_bytes(rank));
                CHECK(report.late_allocations == 0);
            }
        }
    }
}

TEST_CASE("no number of stages and no length of the queue deadlocks or changes a bit") {
    for (const index_t steps : {1, 2, 5}) {
        for (const index_t total : {3, 5, 6, 14}) {
            for (const index_t cat : {0, 2}) {
                small_video v;
                v.schedule = schedule::by_name(steps == 1 ? "euler_flow" : "unipc_flow", steps);
                v.options.total_latents = total;
                v.options.cat_latents = cat;
                CAPTURE(steps, total, cat);
                const auto expected = sample(v, 1);
                CHECK(static_cast<index_t>(expected.size()) == total * 2 * 4 * 4);
                for (int stages = 2; stages <= 8; ++stages) {
                    CAPTURE(stages);
                    CHECK(sample(v, stages) == expected);
                }
            }
        }
    }
}

TEST_CASE("delays in the communicator change no bit") {
    const small_video v;
    const auto expected = sample(v, 1);
    for (unsigned seed = 0; seed < 20; ++seed) {
        const int stages = 2 + static_cast<int>(seed % 4);
        std::vector<float> found;
        thread_team(stages).run([&](thread_communicator& comm) {
            delayed slow(comm.duplicate(), 100 * seed + static_cast<unsigned>(comm.rank()));
            auto model = v.model();
            loop::dual_paral loop(model, slow, v.schedule, v.rule, v.plan(stages));
            loop.run(v.noise(), frame_sink{&found});
        });
        CAPTURE(seed, stages);
        CHECK(found == expected);
    }
}

TEST_CASE("exchanges that are done in order change no bit and hold up no stage") {
    const small_video v;
    const auto expected = sample(v, 1);
    for (int stages = 2; stages <= 6; ++stages) {
        CAPTURE(stages);
        std::vector<float> found;
        // Windows whose layers each stage has begun.
        std::vector<std::atomic<int>> begun(static_cast<std::size_t>(stages));
        thread_team(stages).run([&](thread_communicator& comm) {
            in_order_communicator<thread_communicator> in_order(comm.duplicate());
            hesitant model(v.model(), begun, comm.rank());
            loop::dual_paral loop(model, in_order, v.schedule, v.rule, v.plan(stages));
            loop.run(v.noise(), frame_sink{&found});
        });
        CHECK(found == expected);
    }
    std::vector<float> on_mesh;
    thread_team(6).run([&](thread_communicator& comm) {
        in_order_communicator<thread_communicator> in_order(comm.duplicate());
        mesh axes(in_order, {{"stage", 3}, {"guidance", 2}});
        auto model = v.model();
        loop::dual_paral loop(model, axes, v.schedule, v.rule, v.plan(3, 2));
        loop.run(v.noise(), frame_sink{&on_mesh});
    });
    CHECK(on_mesh == expected);
}

TEST_CASE("stages and branches wait for their messages on the host") {
    const small_video v;
    for (const int guides : {1, 2}) {
        thread_team(3 * guides).run([&](thread_communicator& world) {
            call_log log;
            logged_communicator comm(world.duplicate(), log);
            mesh axes(comm, {{"stage", 3}, {"guidance", guides}});
            auto model = v.model();
            std::vector<float> frames;
            loop::dual_paral loop(model, axes, v.schedule, v.rule, v.plan(3, guides));
            loop.run(v.noise(), frame_sink{&frames});
            EXPECT(std::ranges::count(log.calls, "wait") == 0);
            EXPECT(std::ranges::count(log.calls, "wait on the host") > v.schedule.steps());
        });
    }
}

TEST_CASE("stages that reach each other's memory name where their messages are received") {
    const small_video v;
    const auto expected = sample(v, 1);
    for (const int stages : {2, 3, 5}) {
        CAPTURE(stages);
        std::vector<float> found;
        thread_team(stages).run([&](thread_communicator& comm) {
            // Which tells targets that are not where the messages are received.
            direct_threads direct(comm.duplicate());
            auto model = v.model();
            const auto plan = v.plan(stages);
            loop::dual_paral loop(model, direct, v.schedule, v.rule, plan);
            loop.run(v.noise(), frame_sink{&found});
            // All but a byte for each iteration, which the host reads.
            const index_t told = direct.rank() + 1 < stages ? plan.iterations() : 0;
            EXPECT(direct.bytes_to_targets() ==
                   plan.bytes_sent_by(direct.rank(), plan.iterations()) - told);
        });
        CHECK(found == expected);
    }
}

TEST_CASE("a run that is stopped goes on, from a file too and on other stages") {
    small_video v;
    const auto expected = sample(v, 1);
    const auto plan = v.plan(3);
    for (index_t stop = 0; stop + 2 < plan.iterations(); ++stop) {
        CAPTURE(stop);
        const temporary_directory folder;
        const auto file = folder / "video.safetensors";
        std::vector<float> found;
        thread_team(3).run([&](thread_communicator& comm) {
            metered counted(comm.duplicate());
            auto model = v.model();
            loop::dual_paral loop(model, counted, v.schedule, v.rule, v.plan(3));
            EXPECT(!loop.run(v.noise(), frame_sink{&found}, [&](index_t i) { return i != stop; }));
            // The iteration after the one that said so is still done.
            EXPECT(loop.iteration() == stop + 2);
            EXPECT(counted.account().total().bytes_sent ==
                   plan.bytes_sent_by(comm.rank(), stop + 2));
            if (comm.rank() > 0) return;
            safetensors_writer writer;
            loop.save(writer);
            writer.write(file);
        });
        const auto halfway = found;
        for (const int stages : {1, 2, 5}) {
            found = halfway;
            thread_team(stages).run([&](thread_communicator& comm) {
                auto model = v.model();
                loop::dual_paral loop(model, comm, v.schedule, v.rule, v.plan(stages));
                if (comm.rank() == 0) loop.restore(safetensors_file::open(file));
                loop.run(v.noise(), frame_sink{&found});
                EXPECT(loop.done());
            });
            CHECK(found == expected);
        }
    }
}

TEST_CASE("branches of guidance on pipelines of their own change no bit") {
    small_video two;
    small_video three = two;
    three.rule = guidance_rule::image_and_text(1.5, 4.0);
    for (const small_video& v : {two, three}) {
        const auto expected = sample(v, 1);
        const int guidance = static_cast<int>(v.rule.branches().size());
        for (const int stages : {1, 2, 3}) {
            CAPTURE(stages, guidance);
            const auto plan = v.plan(stages, guidance);
            const mesh_shape shape{{"stage", stages}, {"guidance", guidance}};
            const temporary_directory folder;
            std::vector<float> found;
            std::vector<float> resumed;
            std::vector<index_t> sent(static_cast<std::size_t>(shape.size()));
            thread_team(shape.size()).run([&](thread_communicator& world) {
                mesh<metered<thread_communicator>> ranks(mesh<thread_communicator>(world, shape));
                const int stage = ranks.coordinate("stage");
                counting_resource memory;
                auto model = v.model();
                loop::dual_paral loop(model, ranks, v.schedule, v.rule, plan, kernel::host{},
                                      {&memory, memory_space::host});
                EXPECT(memory.bytes_in_use() == plan.workspace_bytes(stage));
                const index_t taken = memory.allocations();
                // Stopped on the way; the callback is rank 0's alone.
                EXPECT(!loop.run(v.noise(), frame_sink{&found}, [&](index_t i) {
                    EXPECT(world.rank() == 0);
                    return i != 3;
                }));
                if (world.rank() == 0) {
                    safetensors_writer writer;
                    loop.save(writer);
                    writer.write(folder / "video.safetensors");
                    resumed = found;
                }
                loop.run(v.noise(), frame_sink{&found});
                EXPECT(loop.done());
                EXPECT(memory.allocations() == taken);
                // A byte an iteration and two runs: as planned all the same.
                const index_t along = ranks.axis("stage").account().total().bytes_sent;
                const index_t across = ranks.axis("guidance").account().total().bytes_sent;
                EXPECT(along == plan.bytes_sent_by(stage, plan.iterations()));
                EXPECT(across == plan.guidance_bytes_sent_by(stage, plan.iterations()));
                sent[static_cast<std::size_t>(world.rank())] = along + across;
                loop::dual_paral other(model, ranks, v.schedule, v.rule, plan);
                if (stage == 0) {
                    other.restore(safetensors_file::open(folder / "video.safetensors"));
                }
                other.run(v.noise(), frame_sink{&resumed});
            });
            CHECK(found == expected);
            CHECK(resumed == expected);
            CHECK(std::accumulate(sent.begin(), sent.end(), index_t{0}) ==
                  plan.bytes(plan.iterations()));
        }
    }
}

TEST_CASE("what pipelines side by side cannot do is refused on all ranks, with one text") {
    const small_video v;
    const auto messages = [&](const mesh_shape& shape, const loop::dual_paral_plan& plan,
                              auto&& before_run) {
        std::vector<std::string> out(static_cast<std::size_t>(shape.size()));
        thread_team(shape.size()).run([&](thread_communicator& world) {
            try {
                mesh<thread_communicator> ranks(world, shape);
                auto model = v.model();
                loop::dual_paral loop(model, ranks, v.schedule, v.rule, plan);
                before_run(loop, world.rank());
                std::vector<float> frames;
                loop.run(v.noise(), frame_sink{&frames});
            } catch (const std::exception& error) {
                out[static_cast<std::size_t>(world.rank())] = error.what();
            }
        });
        return out;
    };
    const auto nothing = [](auto&, int) {};
    for (const auto& text : messages({{"stage", 2}, {"latent", 2}}, v.plan(2), nothing)) {
        CHECK_THAT(text, ContainsSubstring("beside it use guidance, ring or ulysses"));
    }
    for (const auto& text : messages({{"stage", 2}, {"guidance", 2}}, v.plan(2), nothing)) {
        CHECK_THAT(text, ContainsSubstring("planned for guidance=1"));
        CHECK_THAT(text, ContainsSubstring("guidance=2; pass that to describe_stages"));
    }
    const temporary_directory folder;
    const auto file = folder / "video.safetensors";
    self_communicator alone;
    auto model = v.model();
    loop::dual_paral first(model, alone, v.schedule, v.rule, v.plan(1));
    std::vector<float> frames;
    first.run(v.noise(), frame_sink{&frames}, [](index_t i) { return i < 2; });
    safetensors_writer writer;
    first.save(writer);
    writer.write(file);
    // Restored in one pipeline only.
    const auto texts =
        messages({{"stage", 2}, {"guidance", 2}}, v.plan(2, 2), [&](auto& loop, int rank) {
            if (rank == 0) loop.restore(safetensors_file::open(file));
        });
    for (const auto& text : texts) {
        CHECK_THAT(text, ContainsSubstring("disagree on the iteration to go on from"));
    }
    CHECK_THROWS_WITH(v.plan(2, 3), ContainsSubstring("2 branches of guidance cannot be shared"));
}

TEST_CASE("a sink that throws for any block stops all pipelines, with its message") {
    const small_video v;
    const mesh_shape shape{{"stage", 2}, {"guidance", 2}};
    const auto plan = v.plan(2, 2);
    for (index_t bad = 0; bad < plan.blocks(); ++bad) {
        std::vector<std::string> messages(4);
        thread_team(4).run([&](thread_communicator& world) {
            mesh<thread_communicator> ranks(world, shape);
            auto model = v.model();
            loop::dual_paral loop(model, ranks, v.schedule, v.rule, plan);
            try {
                loop.run(v.noise(), [&](const_latent_view, index_t first) {
                    if (first == plan.first_latent_of(bad)) throw std::runtime_error("disk full");
                });
            } catch (const std::exception& error) {
                messages[static_cast<std::size_t>(world.rank())] = error.what();
            }
            // What was under way is lost: it is neither saved nor run again.
            safetensors_writer writer;
            if (world.rank() == 0)
                expect_throws([&] { loop.save(writer); }, "after one that threw");
        });
        CAPTURE(bad);
        for (const auto& text : messages) CHECK_THAT(text, ContainsSubstring("disk full"));
    }
}

TEST_CASE("pipelines that draw different noise are told apart") {
    const small_video v;
    std::vector<std::string> messages(2);
    thread_team(2).run([&](thread_communicator& world) {
        try {
            mesh<thread_communicator> ranks(world, {{"guidance", 2}});
            auto model = v.model();
            loop::dual_paral loop(model, ranks, v.schedule, v.rule, v.plan(1, 2));
            std::vector<float> frames;
            loop.run(coordinated_noise(7 + static_cast<unsigned>(world.rank()), 3, 2),
                     frame_sink{&frames});
        } catch (const std::exception& error) {
            messages[static_cast<std::size_t>(world.rank())] = error.what();
        }
    });
    for (const auto& text : messages) CHECK_THAT(text, ContainsSubstring("the noise of block 0"));
}

TEST_CASE("a loop that was refused can be made again on the same ranks, and started again") {
    const small_video v;
    const auto expected = sample(v, 1);
    std::vector<float> found;
    std::vector<float> again;
    thread_team(2).run([&](thread_communicator& comm) {
        auto model = v.model();
        expect_throws([&] { loop::dual_paral(model, comm, v.schedule, v.rule, v.plan(1)); },
                      "1 stages");
        // Another cache on one rank only.
        auto plan = v.plan(2);
        plan.model.cache_bytes_per_layer += comm.rank();
        expect_throws([&] { loop::dual_paral(model, comm, v.schedule, v.rule, plan); },
                      "feature cache");
        loop::dual_paral loop(model, comm, v.schedule, v.rule, v.plan(2));
        EXPECT(!loop.run(
            v.noise(), [](auto&&...) {}, [](index_t i) { return i < 3; }));
        loop.restart();
        EXPECT(loop.run(v.noise(), frame_sink{&found}));
        loop.restart();
        EXPECT(loop.run(v.noise(), frame_sink{&again}));
        EXPECT(loop.times().running > 0);
        EXPECT(loop.times().waiting > 0);
        EXPECT(loop.times().idle_share() < 1);
    });
    CHECK(found == expected);
    CHECK(again == expected);
}

TEST_CASE("narrow predictions and latents keep bits, bytes and memory on any mesh") {
    for (const dtype latents : {dtype::f32, dtype::bf16}) {
        for (const dtype wire : {dtype::bf16, dtype::f16}) {
            small_video v;
            v.options.wire_prediction = wire;
            const auto run = [&](const mesh_shape& shape) {
                const int stages = shape.degree("stage");
                auto plan = v.plan(stages, shape.degree("guidance"));
                plan.problem.type = latents;
                if (latents == dtype::bf16) plan.options.wire_prediction = dtype::bf16;
                std::vector<std::vector<std::byte>> out;
                thread_team(shape.size()).run([&](thread_communicator& world) {
                    mesh<metered<thread_communicator>> ranks(
                        mesh<thread_communicator>(world, shape));
                    const int stage = ranks.coordinate("stage");
                    counting_resource memory;
                    auto model = v.model();
                    loop::dual_paral loop(model, ranks, v.schedule, v.rule, plan, kernel::host{},
                                          {&memory, memory_space::host});
                    EXPECT(memory.bytes_in_use() == plan.workspace_bytes(stage));
                    loop.run(v.noise(), [&](const_latent_view frames, index_t) {
                        latent dense(frames.extents, frames.type);
                        kernel::host{}.copy(frames, dense.view());
                        const auto* data = dense.view().data;
                        out.emplace_back(data, data + dense.bytes());
                    });
                    EXPECT(ranks.axis("stage").account().total().bytes_sent ==
                           plan.bytes_sent_by(stage, plan.iterations()));
                    EXPECT(ranks.axis("guidance").account().total().bytes_sent ==
                           plan.guidance_bytes_sent_by(stage, plan.iterations()));
                });
                return out;
            };
            const auto expected = run({{"stage", 1}, {"guidance", 1}});
            CHECK(expected.size() == 4);
            CHECK(run({{"stage", 3}, {"guidance", 1}}) == expected);
            CHECK(run({{"stage", 2}, {"guidance", 2}}) == expected);
        }
    }
}

TEST_CASE("a file that is no part of this video is refused, and the ranks do not wait for it") {
    const small_video v;
    const temporary_directory folder;
    self_communicator alone;
    auto model = v.model();
    loop::dual_paral loop(model, alone, v.schedule, v.rule, v.plan(1));
    std::vector<float> frames;
    CHECK(!loop.run(v.noise(), frame_sink{&frames}, [](index_t i) { return i < 2; }));
    safetensors_writer good;
    loop.save(good);
    const auto file = folder / "video.safetensors";
    good.write(file);
    const auto with = [&](const char* name, const std::string& iteration, bool with_tensors) {
        safetensors_writer writer;
        const auto read = safetensors_file::open(file);
        for (const auto& [key, value] : read.metadata()) writer.set_metadata(key, value);
        if (with_tensors) loop.save(writer);
        writer.set_metadata("dual_paral.iteration", iteration);
        const auto path = folder / name;
        writer.write(path);
        return path;
    };
    const auto refused = [&](const std::filesystem::path& path, const char* text) {
        auto own = v.model();
        loop::dual_paral other(own, alone, v.schedule, v.rule, v.plan(1));
        CAPTURE(path.string());
        CHECK_THROWS_WITH(other.restore(safetensors_file::open(path)), ContainsSubstring(text));
        CHECK(other.iteration() == 0);
    };
    for (const char* iteration : {"99", "-3", "x", "2 "}) {
        refused(with("iteration.safetensors", iteration, true), "is none of this video's");
    }
    refused(with("empty.safetensors", "3", false), "block.0.z");
    small_video other = v;
    other.rule = guidance_rule::classifier_free(2.0);
    std::vector<std::string> messages(2);
    thread_team(2).run([&](thread_communicator& comm) {
        auto own = other.model();
        loop::dual_paral mine(own, comm, other.schedule, other.rule, other.plan(2));
        try {
            safetensors_writer writer;
            if (comm.rank() == 1) expect_throws([&] { mine.save(writer); }, "stage 0 has them");
            if (comm.rank() == 0) {
                expect_throws([&] { mine.restore(safetensors_file::open(file)); }, "another plan");
            }
            mine.run(other.noise(), [](auto&&...) {});
        } catch (const std::exception& error) {
            messages[static_cast<std::size_t>(comm.rank())] = error.what();
        }
    });
    for (const auto& text : messages) CHECK_THAT(text, ContainsSubstring("another plan"));
    thread_team(2).run([&](thread_communicator& comm) {
        auto own = v.model();
        loop::dual_paral mine(own, comm, v.schedule, v.rule, v.plan(2));
        if (comm.rank() == 1) {
            expect_throws([&] { mine.restore(safetensors_file::open(file)); },
                          "stage 1 has no latents to restore");
        }
    });
}

TEST_CASE("a video without an end does not go on where its frames cannot be counted") {
    small_video v;
    v.options.total_latents = 0;
    const temporary_directory folder;
    const auto path = folder / "video.safetensors";
    self_communicator alone;
    auto model = v.model();
    loop::dual_paral loop(model, alone, v.schedule, v.rule, v.plan(1));
    std::vector<float> frames;
    CHECK(!loop.run(v.noise(), frame_sink{&frames}, [](index_t i) { return i < 2; }));
    safetensors_writer writer;
    loop.save(writer);
    writer.set_metadata("dual_paral.iteration", "9223372036854775807");
    writer.write(path);
    CHECK_THROWS_WITH(loop.restore(safetensors_file::open(path)),
                      ContainsSubstring("is none of this video's"));
}

TEST_CASE("hidden tensors lie aligned, and numbers that cannot be counted are refused") {
    small_video v;
    const auto one = v.model();
    const auto problem = latent_problem::of({1, 2, 5, 4, 4}, v.schedule);
    auto model = loop::describe_stages(one, v.rule, {5, 4, 4}, 2);
    model.hidden = {{{1, 5, 3}, dtype::bf16}, {{1, 8, 8}, dtype::f32}};
    const auto plan = plan_dual_paral(problem, v.options, model, 2);
    CHECK(plan.hidden_bytes() == 30 + 256);
    CHECK(plan.hidden_memory() == 64 + 256);
    v.options.block_latents = std::numeric_limits<index_t>::max();
    CHECK_THROWS_WITH(plan_dual_paral(problem, v.options, model, 2),
                      ContainsSubstring("use at most 1099511627776"));
}

TEST_CASE("a video does not go on with other steps, though they have the same names and levels") {
    const auto with_eta = [](double eta) {
        small_video v;
        auto options = schedule::ddim_options::epsilon(5);
        options.eta = eta;
        v.schedule = schedule::ddim(options);
        return v;
    };
    const small_video saved = with_eta(0.3);
    const small_video other = with_eta(0.7);
    const temporary_directory folder;
    const auto file = folder / "video.safetensors";
    self_communicator alone;
    auto model = saved.model();
    loop::dual_paral loop(model, alone, saved.schedule, saved.rule, saved.plan(1));
    safetensors_writer writer;
    loop.save(writer);
    writer.write(file);
    loop.restore(safetensors_file::open(file));
    self_communicator again;
    loop::dual_paral unlike(model, again, other.schedule, other.rule, other.plan(1));
    CHECK_THROWS_WITH(unlike.restore(safetensors_file::open(file)),
                      ContainsSubstring("another plan"));
}

TEST_CASE("a video without an end begins as one with an end does") {
    small_video v;
    v.options.total_latents = 23;
    const auto expected = sample(v, 1);
    v.options.total_latents = 0;
    std::vector<float> found;
    thread_team(3).run([&](thread_communicator& comm) {
        auto model = v.model();
        counting_resource memory;
        loop::dual_paral loop(model, comm, v.schedule, v.rule, v.plan(3), kernel::host{},
                              {&memory, memory_space::host});
        const index_t taken = memory.allocations();
        EXPECT(!loop.run(v.noise(), frame_sink{&found}, [](index_t i) { return i < 20; }));
        EXPECT(memory.allocations() == taken);
    });
    // The last blocks of the one with an end see no noisier block behind them.
    const std::size_t alike = 2 * 4 * 4 * 5;
    CHECK(found.size() > expected.size());
    CHECK(std::equal(expected.begin(), expected.begin() + alike, found.begin()));
}

TEST_CASE("the simulated idle share is the closed form where that holds") {
    small_video v;
    for (int stages = 1; stages <= 5; ++stages) {
        for (const index_t steps : {8, 12}) {
            for (const index_t blocks : {8, 20}) {
                v.schedule = schedule::by_name("euler_flow", steps);
                v.options.total_latents = v.options.cat_latents + blocks * 3;
                const auto plan = v.plan(stages);
                if (10 % stages != 0) continue;  // equal stages only
                const auto estimate = plan.estimate(blocks);
                const double n = stages;
                const double wait = stages == 1 ? 0 : n * n - 1;
                const double expected = wait / (wait + static_cast<double>(steps * blocks));
                CAPTURE(stages, steps, blocks, expected);
                CHECK(std::abs(estimate.mean_idle_share - expected) < 1e-9);
            }
        }
    }
}

TEST_CASE("coordinated noise shares frames between neighbours, and is a function of the block") {
    const coordinated_noise noise(3, 4, 2);
    CHECK(noise.frames_of(0) == std::vector<index_t>{0, 1, 2, 3, 4, 5});
    std::vector<index_t> pool = noise.frames_of(0);
    for (index_t block = 1; block < 50; ++block) {
        const auto frames = noise.frames_of(block);
        REQUIRE(frames.size() == 4);
        // It takes what is not kept in front: the frames of the pool but for its last two.
        auto rest = std::vector<index_t>(pool.begin(), pool.end() - 2);
        auto sorted = frames;
        std::sort(rest.begin(), rest.end());
        std::sort(sorted.begin(), sorted.end());
        REQUIRE(sorted == rest);
        std::vector<index_t> next(pool.end() - 2, pool.end());
        next.insert(next.end(), frames.begin(), frames.end());
        pool = next;
    }
    CHECK(coordinated_noise(4, 4, 2).frames_of(7) != noise.frames_of(7));
    latent a({1, 2, 4, 3, 5});
    noise(6, a.view());
    latent whole({1, 2, 6, 3, 5});
    noise(0, whole.view());
    const auto frames = noise.frames_of(6);
    for (index_t t = 0; t < 4; ++t) {
        CHECK(a.elements<float>()[static_cast<std::size_t>(t * 15)] ==
              whole.elements<float>()[static_cast<std::size_t>(frames[std::size_t(t)] * 15)]);
    }
    CHECK_THROWS_AS(coordinated_noise(1, 4, 5), usage_error);
    CHECK_THROWS_WITH(noise(1, whole.view()), ContainsSubstring("has 4 latent frames"));
}

TEST_CASE("what DualParal cannot do is refused with value and remedy") {
    const small_video v;
    const auto refused = [&](auto&& change, int stages, const char* text) {
        small_video bad = v;
        change(bad.options);
        CAPTURE(text);
        CHECK_THROWS_WITH(bad.plan(stages), ContainsSubstring(text));
    };
    refused([](auto&) {}, 11, "a model of 10 layers cannot have 11 stages");
    refused([](auto&) {}, 0, "0 stages");
    refused([](auto& o) { o.cat_latents = 4; }, 2, "use 0 to 3");
    refused([](auto& o) { o.total_latents = 2; }, 2, "use more than the 2");
    refused([](auto& o) { o.stage_weights = {1}; }, 2, "1 stage weights were given for 2");
    refused([](auto& o) { o.stage_weights = {1, -2}; }, 2, "must be positive");
    auto model = v.model();
    self_communicator alone;
    for (const index_t cat : {0, 1, 3}) {
        const auto other = loop::plan_dual_paral(
            v.plan(1).problem, v.options,
            loop::describe_stages(model, v.rule, v.plan(1).problem.extents, cat), 1);
        CHECK_THROWS_WITH(loop::dual_paral(model, alone, v.schedule, v.rule, other),
                          ContainsSubstring("or another feature cache"));
        CHECK(other.fingerprint() != v.plan(1).fingerprint());
    }
    CHECK_THROWS_WITH(
        loop::plan_dual_paral(v.plan(1).problem, {0, 0, 14, {}, dtype::f32}, v.plan(1).model, 2),
        ContainsSubstring("blocks of 0 latent"));
    small_video weighted = v;
    weighted.options.stage_weights = {1, 3};
    CHECK(weighted.plan(2).stages == std::vector<loop::layer_range>{{0, 3}, {3, 10}});
    CHECK(sample(weighted, 2) == sample(v, 1));
    std::vector<std::string> messages(2);
    thread_team(2).run([&](thread_communicator& comm) {
        try {
            auto model = v.model();
            const auto rule = guidance_rule::classifier_free(3.0 + comm.rank());
            loop::dual_paral loop(model, comm, v.schedule, rule, v.plan(2));
        } catch (const std::exception& error) {
            messages[static_cast<std::size_t>(comm.rank())] = error.what();
        }
    });
    for (const auto& text : messages) CHECK_THAT(text, ContainsSubstring("schedule and guidance"));
}

TEST_CASE("noise that throws on rank 0 stops every stage, with its message") {
    const small_video v;
    std::vector<std::string> messages(4);
    thread_team(4).run([&](thread_communicator& comm) {
        try {
            auto model = v.model();
            loop::dual_paral loop(model, comm, v.schedule, v.rule, v.plan(4));
            std::vector<float> frames;
            loop.run(
                [&](index_t block, latent_view out, stream_ref stream) {
                    if (block == 2) throw std::runtime_error("no memory left");
                    v.noise()(block, out, stream);
                },
                frame_sink{&frames});
        } catch (const std::exception& error) {
            messages[static_cast<std::size_t>(comm.rank())] = error.what();
        }
    });
    for (const auto& text : messages) CHECK_THAT(text, ContainsSubstring("no memory left"));
}
