// SPDX-License-Identifier: Apache-2.0
// What of the messages of a ring and of DualParal is not hidden behind computing, between two GPUs.
#include <latpar/comm/collectives.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>
#include <latpar/layer/ring.hpp>
#include <latpar/loop/dual_paral.hpp>
#include <latpar/nccl/communicator.hpp>
#include <latpar/schedule/euler_flow.hpp>

#include <gpu_benchmark.hpp>
#include <wan/cuda/kernels.hpp>
#include <wan/cuda/transformer.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using namespace latpar;
using gpu_benchmark::median;
using gpu_benchmark::milliseconds;

namespace {

/// A communicator that shortens its messages of device memory once it is told: to nothing, so that
/// what is left of a policy is its computing, or to one element, so that it waits for other ranks
/// too. Whole messages before that fill what is computed with.
class shortened {
public:
    explicit shortened(nccl::communicator inner,
                       std::shared_ptr<index_t> most =
                           std::make_shared<index_t>(std::numeric_limits<index_t>::max()))
        : inner_(std::move(inner)), most_(std::move(most)) {}
    /// To at most so many elements, from now on, of all that was made from this one too.
    void shorten(index_t most) { *most_ = most; }
    [[nodiscard]] int rank() const { return inner_.rank(); }
    [[nodiscard]] int size() const { return inner_.size(); }
    [[nodiscard]] bool reaches(memory_space space) const { return inner_.reaches(space); }
    [[nodiscard]] auto start_exchange(std::span<const send_op> sends,
                                      std::span<const recv_op> recvs, stream_ref stream = {}) {
        const auto shorten = [&](const auto& ops, auto& out) {
            out.assign(ops.begin(), ops.end());
            for (auto& op : out) {
                if (op.space == memory_space::cuda) op.count = std::min(op.count, *most_);
            }
        };
        shorten(sends, sends_);
        shorten(recvs, recvs_);
        return inner_.start_exchange(sends_, recvs_, stream);
    }
    [[nodiscard]] std::optional<shortened> split(int color, int key) {
        auto part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return shortened(std::move(*part), most_);
    }
    [[nodiscard]] shortened duplicate() { return shortened(inner_.duplicate(), most_); }
    [[nodiscard]] shortened background() { return shortened(inner_.background(), most_); }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner_.abort(reason); }

private:
    nccl::communicator inner_;
    std::shared_ptr<index_t> most_;  ///< shared by what was made from one another
    std::vector<send_op> sends_;
    std::vector<recv_op> recvs_;
};

constexpr int warm_up = 2;

/// What `with`, `without` and `messages` take, in milliseconds: in turns, so that they meet the same
/// clocks, and what is exposed as the median of the differences between neighbours.
nlohmann::json compare(nccl::communicator& comm, stream_ref stream, int rounds,
                       const std::function<void()>& with, const std::function<void()>& without,
                       const std::function<void()>& messages) {
    gpu_benchmark::head_start ahead;
    const auto time = [&](const std::function<void()>& work) {
        barrier(comm);
        ahead.give(stream);
        return milliseconds(stream, work);
    };
    std::vector<double> whole, computing, alone, differences;
    for (int i = 0; i < rounds + warm_up; ++i) {
        const double one = time(with);
        const double other = time(without);
        const double sent = time(messages);
        if (i < warm_up) continue;
        whole.push_back(one);
        computing.push_back(other);
        alone.push_back(sent);
        differences.push_back(one - other);
    }
    const double exposed = std::max(0.0, median(std::move(differences)));
    const double serial = median(std::move(alone));
    return {{"milliseconds", median(std::move(whole))},
            {"without_messages_milliseconds", median(std::move(computing))},
            {"messages_milliseconds", serial},
            {"exposed_milliseconds", exposed},
            {"exposed", exposed / serial}};
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
    layer::ring policy(wan::cuda::attention{}, comm, plan, cuda::kernels{}, memory.source());
    shortened nothing(comm.duplicate());
    layer::ring computing(wan::cuda::attention{}, nothing, plan, cuda::kernels{}, memory.source());
    const auto call = [&](auto& of) {
        of(tensors[0].view(), tensors[1].view(), tensors[2].view(), tensors[3].view(), {}, stream);
    };
    call(computing);
    nothing.shorten(0);
    // Keys and values once round, one step after the other.
    const int next = (comm.rank() + 1) % comm.size();
    const int before = (comm.rank() + comm.size() - 1) % comm.size();
    const auto messages = [&] {
        for (int step = 1; step < comm.size(); ++step) {
            std::vector<send_op> sends;
            std::vector<recv_op> recvs;
            for (const std::size_t i : {1, 2}) {
                const auto from = tensors[i].view();
                const auto to = tensors[i == 1 ? 0 : 3].view();
                sends.push_back({from.data, from.elements(), from.type, next, from.space});
                recvs.push_back({to.data, to.elements(), to.type, before, to.space});
            }
            exchange(comm, sends, recvs, stream);
        }
    };
    nlohmann::json out = compare(
        comm, stream, 25, [&] { call(policy); }, [&] { call(computing); }, messages);
    out["what"] =
        latpar::detail::concat("ring, [", s.tokens, ", ", s.heads, ", ", s.head_dim, "] bf16");
    return out;
}

/// A video of blocks of four latent frames, 480x832, through two stages of so many layers of Wan
/// 2.1 1.3B: the fewer, the more weigh the messages.
nlohmann::json measure_dual_paral(nccl::communicator& comm, index_t layers_of_stage) {
    constexpr index_t text_tokens = 512;
    cuda::stream stream;
    cuda::device_memory memory;
    wan::config config = wan::parse_config(gpu_benchmark::wan_1_3b, "Wan 2.1 1.3B");
    config.num_layers = layers_of_stage * comm.size();
    auto exec = std::make_shared<wan::cuda::executor>(
        wan::cuda::executor_options{dtype::bf16, memory.source()});
    wan::cuda::transformer<> model(
        wan::cuda::random_weights(config, dtype::bf16, memory.source(), 1), exec);
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
    loop::dual_paral policy(model, comm, schedule, rule, plan, cuda::kernels{}, memory.source());
    shortened brief(comm.duplicate());
    loop::dual_paral computing(model, brief, schedule, rule, plan, cuda::kernels{},
                               memory.source());
    const auto video = [&](auto& of) {
        if (comm.rank() == 0) of.restart();
        static_cast<void>(of.run(
            [](index_t, latent_view out, stream_ref on) {
                wan::cuda::fill_random(out.data, out.elements(), out.type, 1, 0, 7, on);
            },
            [](const_latent_view, index_t) {}, stream));
    };
    video(computing);
    brief.shorten(1);
    // Each task's hidden tensors to the next stage, then its prediction back.
    const index_t most = std::max(plan.hidden_bytes(), plan.prediction_bytes(plan.tasks_of(0)[0]));
    tensor<1> sent({most}, dtype::u8, memory.source());
    tensor<1> received({most}, dtype::u8, memory.source());
    const auto pass = [&](int from, index_t bytes) {
        const int to = 1 - from;
        if (comm.rank() == from) {
            const send_op op{sent.view().data, bytes, dtype::u8, to, memory_space::cuda};
            exchange(comm, {&op, 1}, {}, stream);
        } else {
            const recv_op op{received.view().data, bytes, dtype::u8, from, memory_space::cuda};
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
    nlohmann::json out = compare(
        comm, stream, 7, [&] { video(policy); }, [&] { video(computing); }, messages);
    out["what"] = latpar::detail::concat("DualParal, 2 stages with ", layers_of_stage,
                                         " of the layers of Wan 2.1 1.3B, bf16, ",
                                         plan.tasks_before(plan.iterations()), " tasks");
    return out;
}

void measure_all(nlohmann::json& report) {
    const auto add = [&](const auto& measure) {
        std::array<nlohmann::json, 2> rows;
        thread_team(2).run([&](thread_communicator& threads) {
            cuda::set_device(threads.rank());
            auto comm = nccl::communicator::over(threads.duplicate());
            rows[static_cast<std::size_t>(comm.rank())] = measure(comm);
        });
        nlohmann::json& row = rows[rows[0]["exposed"] < rows[1]["exposed"] ? 1 : 0];
        std::printf(
            "%s: %.3f ms, without messages %.3f ms, messages alone %.3f ms: %.0f %% exposed\n",
            row["what"].get<std::string>().c_str(), row["milliseconds"].get<double>(),
            row["without_messages_milliseconds"].get<double>(),
            row["messages_milliseconds"].get<double>(), 100 * row["exposed"].get<double>());
        report["rows"].push_back(std::move(row));
    };
    for (const attention_size& s : {attention_size{32760, 12, 128}, attention_size{20280, 12, 128},
                                    attention_size{75600, 40, 128}}) {
        add([&](nccl::communicator& comm) { return measure_ring(comm, s); });
    }
    for (const index_t layers : {1, 4}) {
        add([&](nccl::communicator& comm) { return measure_dual_paral(comm, layers); });
    }
}

}  // namespace

int main(int argc, char** argv) {
    return gpu_benchmark::run(argc, argv, "exposed_messages", 2, measure_all);
}
