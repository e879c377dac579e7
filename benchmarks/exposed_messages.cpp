// SPDX-License-Identifier: Apache-2.0
// What of the messages of a ring and of DualParal is not hidden behind computing, between two GPUs.
#include <latpar/comm/collectives.hpp>
#include <latpar/comm/detail/shared_buffer.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>
#include <latpar/layer/ring.hpp>
#include <latpar/loop/dual_paral.hpp>
#include <latpar/mpi/communicator.hpp>
#include <latpar/mpi/environment.hpp>
#include <latpar/nccl/communicator.hpp>
#include <latpar/schedule/euler_flow.hpp>

#include <gpu_benchmark.hpp>
#include <observed_communicator.hpp>
#include <wan/cuda/kernels.hpp>
#include <wan/cuda/transformer.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace latpar;
using gpu_benchmark::median;
using gpu_benchmark::milliseconds;
using gpu_benchmark::observed;
using gpu_benchmark::quantile;

namespace {

constexpr int warm_up = 2;
constexpr int rounds = 24;

/// A policy's work and the communicator that it was given.
struct observed_work {
    std::function<void()> work;
    observed* comm;
};

/// What `with`, `without` and `messages` take, in milliseconds: in turns, so that they meet the same
/// clocks, and each of the first two as often behind the other as before it. How much longer the
/// stream waits with messages than without, and how much longer it all takes, are medians of the
/// differences within a round; of the former the quartiles tell how well it is known.
nlohmann::json compare(nccl::communicator& comm, stream_ref stream, const observed_work& with,
                       const observed_work& without, const std::function<void()>& messages) {
    struct measured {
        std::vector<double> whole, stalled;
    };
    gpu_benchmark::head_start ahead;
    const auto time = [&](const std::function<void()>& work) {
        barrier(comm);
        ahead.give(stream);
        return milliseconds(stream, work);
    };
    const auto measure = [&](const observed_work& of, measured& out) {
        out.whole.push_back(time(of.work));
        out.stalled.push_back(of.comm->take_stalled());
    };
    for (int i = 0; i < warm_up; ++i) {
        for (const auto* work : {&with.work, &without.work, &messages}) {
            static_cast<void>(time(*work));
        }
    }
    static_cast<void>(with.comm->take_stalled());
    static_cast<void>(without.comm->take_stalled());
    measured one, other;
    std::vector<double> alone, waiting, longer;
    for (int i = 0; i < rounds; ++i) {
        if (i % 2 == 0) measure(with, one);
        measure(without, other);
        if (i % 2 == 1) measure(with, one);
        alone.push_back(time(messages));
        waiting.push_back(one.stalled.back() - other.stalled.back());
        longer.push_back(one.whole.back() - other.whole.back());
    }
    const double serial = median(alone);
    const auto exposed = [&](double share) { return quantile(waiting, share) / serial; };
    return {{"milliseconds", median(one.whole)},
            {"without_messages_milliseconds", median(other.whole)},
            {"messages_milliseconds", serial},
            {"stalled_milliseconds", median(one.stalled)},
            {"stalled_without_messages_milliseconds", median(other.stalled)},
            {"longer_milliseconds", median(longer)},
            {"exposed_milliseconds", median(waiting)},
            {"exposed", exposed(0.5)},
            {"exposed_quartiles", {exposed(0.25), exposed(0.75)}}};
}

struct attention_size {
    index_t tokens;  ///< of all ranks
    index_t heads;
    index_t head_dim;
};

nlohmann::json measure_ring(nccl::communicator& comm, const attention_size& s) {
    cuda::stream stream;
    cuda::device_memory memory;
    const layer::ring_plan plan =
        layer::plan_ring({s.heads, s.heads, s.head_dim, dtype::bf16, true},
                         {layer::even_tokens(s.tokens, comm.size())}, comm.size());
    const std::array<index_t, 3> extents{s.tokens / comm.size(), s.heads, s.head_dim};
    std::vector<tensor<3>> tensors;
    for (int i = 0; i < 4; ++i) {
        tensors.emplace_back(extents, dtype::bf16, memory.source());
        wan::cuda::fill_random(tensors.back().view().data, tensors.back().view().elements(),
                               dtype::bf16, 1, 0, static_cast<std::uint64_t>(i), stream);
    }
    observed whole(comm.duplicate());
    observed nothing(comm.duplicate());
    layer::ring policy(wan::cuda::attention{}, whole, plan, cuda::kernels{}, memory.source());
    layer::ring computing(wan::cuda::attention{}, nothing, plan, cuda::kernels{}, memory.source());
    const auto call = [&](auto& of) {
        of(tensors[0].view(), tensors[1].view(), tensors[2].view(), tensors[3].view(), {}, stream);
    };
    call(computing);
    nothing.shorten(0);
    // Keys and values once round, one step after the other, by the same way.
    latpar::detail::shared_buffer received;
    const index_t bytes = tensors[1].bytes();
    received.reserve([&](int) { return 2 * bytes; }, memory.source(), comm);
    const int next = (comm.rank() + 1) % comm.size();
    const int before = (comm.rank() + comm.size() - 1) % comm.size();
    const auto messages = [&] {
        for (int step = 1; step < comm.size(); ++step) {
            std::vector<send_op> sends;
            std::vector<recv_op> recvs;
            for (const std::size_t i : {1, 2}) {
                std::byte* const to = received.data() + (i == 1 ? 0 : bytes);
                sends.push_back({tensors[i].view().data, bytes, dtype::u8, next, memory_space::cuda,
                                 received.at(next, to)});
                recvs.push_back(
                    {to, bytes, dtype::u8, before, memory_space::cuda, received.is_shared()});
            }
            exchange(comm, sends, recvs, stream);
        }
    };
    nlohmann::json out = compare(comm, stream, {[&] { call(policy); }, &whole},
                                 {[&] { call(computing); }, &nothing}, messages);
    out["what"] =
        latpar::detail::concat("ring, [", s.tokens, ", ", s.heads, ", ", s.head_dim, "] bf16");
    return out;
}

/// What is computed with. Of random numbers a device computes as fast as its power lets it, which
/// changes from one moment to the next and with all that it does beside; of zeros as fast as its
/// clock does, always.
enum class numbers { random, zeros };

float spread_of(numbers kind) {
    return kind == numbers::random ? 1 : 0;
}

std::shared_ptr<const wan::cuda::weights> weights_of(const wan::config& config, numbers kind,
                                                     memory_source source) {
    auto out = wan::cuda::random_weights(config, dtype::bf16, source, 1);
    if (kind == numbers::zeros) {
        gpu_benchmark::must(
            cudaMemset(out->storage.data(), 0, static_cast<std::size_t>(out->storage.bytes())));
    }
    return out;
}

/// Wan whose layers compute with the same hidden tensors whatever came: a message that was shortened
/// leaves those that the task before has worked on, and what has grown without end computes faster.
/// That is a copy of them more in each task.
class steady_model : public wan::cuda::transformer<> {
public:
    steady_model(const wan::config& config, numbers kind, memory_source source)
        : wan::cuda::transformer<>(weights_of(config, kind, source),
                                   std::make_shared<wan::cuda::executor>(
                                       wan::cuda::executor_options{dtype::bf16, source})),
          spread_(spread_of(kind)) {}

    void layers(index_t first, index_t last, context& ctx, std::span<const hidden_view> hidden,
                feature_cache* cache, stream_ref stream) {
        for (std::size_t i = 0; i < hidden.size(); ++i) {
            const hidden_view& to = hidden[i];
            if (i == same_.size()) {
                same_.emplace_back(to.extents, to.type, memory_.source());
                wan::cuda::fill_random(same_[i].view().data, to.elements(), to.type, spread_, 0, i,
                                       stream);
            }
            gpu_benchmark::must(cudaMemcpyAsync(
                to.data, same_[i].view().data, static_cast<std::size_t>(same_[i].bytes()),
                cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream.handle)));
        }
        transformer::layers(first, last, ctx, hidden, cache, stream);
    }

private:
    float spread_;
    cuda::device_memory memory_;
    std::vector<tensor<3>> same_;
};

/// A video of blocks of four latent frames, 480x832, through two stages of so many layers of Wan
/// 2.1 1.3B: the fewer, the more weigh the messages.
nlohmann::json measure_dual_paral(nccl::communicator& comm, index_t layers_of_stage, numbers kind) {
    constexpr index_t text_tokens = 512;
    cuda::stream stream;
    cuda::device_memory memory;
    wan::config config = wan::parse_config(gpu_benchmark::wan_1_3b, "Wan 2.1 1.3B");
    config.num_layers = layers_of_stage * comm.size();
    steady_model model(config, kind, memory.source());
    model.set_text(guidance_branch::conditional,
                   std::vector<float>(static_cast<std::size_t>(text_tokens * config.text_dim), 1));
    const auto rule = guidance_rule::of({guidance_branch::conditional}, {{1.0}});
    const linear_scheduler schedule = schedule::euler_flow({.steps = 6});
    const loop::dual_paral_options options{
        .block_latents = 4, .cat_latents = 2, .total_latents = 40};
    const extents3 window{6, 60, 104};
    const auto plan = loop::plan_dual_paral(
        latent_problem::of({1, 16, window[0], window[1], window[2]}, schedule), options,
        loop::describe_stages(model, rule, window, options.cat_latents), comm.size());
    observed whole(comm.duplicate());
    observed brief(comm.duplicate());
    loop::dual_paral policy(model, whole, schedule, rule, plan, cuda::kernels{}, memory.source());
    loop::dual_paral computing(model, brief, schedule, rule, plan, cuda::kernels{},
                               memory.source());
    const auto video = [&](auto& of) {
        if (comm.rank() == 0) of.restart();
        static_cast<void>(of.run(
            [&](index_t, latent_view out, stream_ref on) {
                wan::cuda::fill_random(out.data, out.elements(), out.type, spread_of(kind), 0, 7,
                                       on);
            },
            [](const_latent_view, index_t) {}, stream));
    };
    video(computing);
    brief.shorten(1);
    // Each task's hidden tensors to the next stage, then its prediction back, to where they belong.
    const index_t most = std::max(plan.hidden_bytes(), plan.prediction_bytes(plan.tasks_of(0)[0]));
    tensor<1> sent({most}, dtype::u8, memory.source());
    latpar::detail::shared_buffer received;
    received.reserve([&](int) { return most; }, memory.source(), comm);
    const auto pass = [&](int from, index_t bytes) {
        const int to = 1 - from;
        if (comm.rank() == from) {
            const send_op op{sent.view().data,   bytes,
                             dtype::u8,          to,
                             memory_space::cuda, received.at(to, received.data())};
            exchange(comm, {&op, 1}, {}, stream);
        } else {
            const recv_op op{received.data(),     bytes, dtype::u8, from, memory_space::cuda,
                             received.is_shared()};
            exchange(comm, {}, {&op, 1}, stream);
        }
    };
    const auto messages = [&] {
        for (index_t i = 0; i < plan.iterations(); ++i) {
            for (const loop::dual_paral_task& task : plan.tasks_of(i)) {
                pass(0, plan.hidden_bytes());
                pass(1, plan.prediction_bytes(task));
            }
        }
    };
    nlohmann::json out = compare(comm, stream, {[&] { video(policy); }, &whole},
                                 {[&] { video(computing); }, &brief}, messages);
    out["what"] = latpar::detail::concat("DualParal, 2 stages with ", layers_of_stage,
                                         " of the layers of Wan 2.1 1.3B, bf16, ",
                                         plan.tasks_before(plan.iterations()), " tasks, ",
                                         kind == numbers::zeros ? "zeros" : "random numbers");
    return out;
}

/// Two ranks: the processes of mpirun, or threads if there is but one.
class two_ranks {
public:
    two_ranks() {
        auto world = mpi::communicator::world();
        if (world.size() == 1) return;
        latpar::detail::require(world.size() == 2, "two processes are needed, there are ",
                                world.size());
        cuda::set_device(world.rank());
        world_.emplace(std::move(world));
    }
    [[nodiscard]] bool are_processes() const noexcept { return world_.has_value(); }
    /// Whether this process is the one that reports.
    [[nodiscard]] bool speaks() const { return !world_ || world_->rank() == 0; }
    /// What `measure(comm)` gives on each rank.
    template <class Measure>
    [[nodiscard]] std::vector<nlohmann::json> run(const Measure& measure) {
        std::vector<nlohmann::json> rows(2);
        const auto on_rank = [&](any_communicator bootstrap) {
            auto comm = nccl::communicator::over(std::move(bootstrap));
            const auto texts = comm.control_all_gather(measure(comm).dump());
            if (!world_ && comm.rank() > 0) return;
            for (std::size_t i : {0, 1}) rows[i] = nlohmann::json::parse(texts[i]);
        };
        if (world_) {
            on_rank(any_communicator(world_->duplicate()));
        } else {
            thread_team(2).run([&](thread_communicator& threads) {
                cuda::set_device(threads.rank());
                on_rank(any_communicator(threads.duplicate()));
            });
        }
        return rows;
    }

private:
    std::optional<mpi::communicator> world_;
};

/// One row of what the ranks report: what concerns all, as rank 0 has it, and what each waits.
nlohmann::json row_of(const std::vector<nlohmann::json>& of_ranks) {
    nlohmann::json row = of_ranks[0];
    for (const char* const what : {"stalled_milliseconds", "stalled_without_messages_milliseconds",
                                   "exposed_milliseconds", "exposed", "exposed_quartiles"}) {
        row[what] = nlohmann::json::array();
        for (const nlohmann::json& rank : of_ranks) row[what].push_back(rank[what]);
    }
    return row;
}

void measure_all(two_ranks& ranks, nlohmann::json& report) {
    report["ranks"] = ranks.are_processes() ? "processes" : "threads";
    const auto add = [&](const auto& measure) {
        nlohmann::json row = row_of(ranks.run(measure));
        if (!ranks.speaks()) return;
        const auto percent = [](const nlohmann::json& part) { return 100 * part.get<double>(); };
        std::printf(
            "%s: %.3f ms, %.3f ms longer than without messages, which alone take %.3f ms; "
            "streams wait %.3f and %.3f ms of that: %.0f (%.0f to %.0f) and %.0f (%.0f to %.0f) %% "
            "exposed\n",
            row["what"].get<std::string>().c_str(), row["milliseconds"].get<double>(),
            row["longer_milliseconds"].get<double>(), row["messages_milliseconds"].get<double>(),
            row["exposed_milliseconds"][0].get<double>(),
            row["exposed_milliseconds"][1].get<double>(), percent(row["exposed"][0]),
            percent(row["exposed_quartiles"][0][0]), percent(row["exposed_quartiles"][0][1]),
            percent(row["exposed"][1]), percent(row["exposed_quartiles"][1][0]),
            percent(row["exposed_quartiles"][1][1]));
        report["rows"].push_back(std::move(row));
    };
    for (const attention_size& s : {attention_size{32760, 12, 128}, attention_size{20280, 12, 128},
                                    attention_size{75600, 40, 128}}) {
        add([&](nccl::communicator& comm) { return measure_ring(comm, s); });
    }
    for (const numbers kind : {numbers::zeros, numbers::random}) {
        for (const index_t layers : {1, 4}) {
            add([&](nccl::communicator& comm) { return measure_dual_paral(comm, layers, kind); });
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const mpi::environment mpi;
    std::optional<two_ranks> ranks;
    // One process writes the file.
    const bool speaks = mpi::communicator::world().rank() == 0;
    return gpu_benchmark::run(speaks ? argc : 1, argv, "exposed_messages", 2,
                              [&](nlohmann::json& report) {
                                  ranks.emplace();
                                  measure_all(*ranks, report);
                              });
}
