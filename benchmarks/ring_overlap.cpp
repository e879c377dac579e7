// SPDX-License-Identifier: Apache-2.0
// How much of a ring's messages hides behind its attention, between two GPUs.
#include <latpar/comm/collectives.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>
#include <latpar/layer/ring.hpp>
#include <latpar/nccl/communicator.hpp>

#include <gpu_benchmark.hpp>
#include <wan/cuda/attention.hpp>

#include <array>
#include <vector>

using namespace latpar;
using gpu_benchmark::median;
using gpu_benchmark::milliseconds;

namespace {

/// A communicator whose messages of device memory never leave: what is left of a policy is its
/// computing.
class silent {
public:
    struct request {
        [[nodiscard]] bool test() { return true; }
        void wait() {}
        [[nodiscard]] bool wait_until(deadline) { return true; }
    };

    explicit silent(nccl::communicator inner) : inner_(std::move(inner)) {}
    [[nodiscard]] int rank() const { return inner_.rank(); }
    [[nodiscard]] int size() const { return inner_.size(); }
    [[nodiscard]] bool reaches(memory_space) const { return true; }
    [[nodiscard]] request start_exchange(std::span<const send_op>, std::span<const recv_op>,
                                         stream_ref = {}) {
        return {};
    }
    [[nodiscard]] std::optional<silent> split(int color, int key) {
        auto part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return silent(std::move(*part));
    }
    [[nodiscard]] silent duplicate() { return silent(inner_.duplicate()); }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner_.abort(reason); }

private:
    nccl::communicator inner_;
};

struct shape {
    index_t tokens;  ///< of all ranks
    index_t heads;
    index_t head_dim;
};

constexpr int rounds = 12;
constexpr int warm_up = 2;

/// What a rank measures of one shape, in milliseconds.
nlohmann::json measure(nccl::communicator& comm, const shape& s) {
    cuda::stream stream;
    cuda::device_memory memory;
    const layer::ring_plan plan =
        layer::plan_ring({s.heads, s.heads, s.head_dim, dtype::bf16, true},
                         {layer::even_tokens(s.tokens, comm.size())}, comm.size());
    const std::array<index_t, 3> extents{s.tokens / comm.size(), s.heads, s.head_dim};
    std::vector<tensor<3>> tensors;
    for (int i = 0; i < 4; ++i) {
        tensors.emplace_back(extents, dtype::bf16, memory.source());
        gpu_benchmark::must(cudaMemset(tensors.back().view().data, 60 + i,
                                       static_cast<std::size_t>(tensors.back().bytes())));
    }
    layer::ring policy(wan::cuda::attention{}, comm, plan, cuda::kernels{}, memory.source());
    silent nobody(comm.duplicate());
    layer::ring computing(wan::cuda::attention{}, nobody, plan, cuda::kernels{}, memory.source());
    const auto time = [&](auto&& work) {
        std::vector<double> taken;
        for (int i = 0; i < rounds + warm_up; ++i) {
            barrier(comm);
            const double once = milliseconds(stream, work);
            if (i >= warm_up) taken.push_back(once);
        }
        return median(std::move(taken));
    };
    const auto call = [&](auto& of) {
        of(tensors[0].view(), tensors[1].view(), tensors[2].view(), tensors[3].view(), {}, stream);
    };
    const double whole = time([&] { call(policy); });
    const double computed = time([&] { call(computing); });
    // The messages alone: keys and values once round, one step after the other.
    const int next = (comm.rank() + 1) % comm.size();
    const int before = (comm.rank() + comm.size() - 1) % comm.size();
    const double sent = time([&] {
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
    });
    return {{"tokens", s.tokens},
            {"heads", s.heads},
            {"head_dim", s.head_dim},
            {"ring_ms", whole},
            {"attention_ms", computed},
            {"messages_ms", sent},
            {"exposed", std::max(0.0, whole - computed) / sent}};
}

void measure_all(nlohmann::json& report) {
    for (const shape& s : {shape{32760, 12, 128}, shape{20280, 12, 128}, shape{75600, 40, 128}}) {
        std::array<nlohmann::json, 2> rows;
        thread_team(2).run([&](thread_communicator& threads) {
            cuda::set_device(threads.rank());
            auto comm = nccl::communicator::over(threads.duplicate());
            rows[static_cast<std::size_t>(comm.rank())] = measure(comm, s);
        });
        nlohmann::json& row = rows[rows[0]["ring_ms"] < rows[1]["ring_ms"] ? 1 : 0];
        std::printf(
            "[%5lld, %2lld, %3lld] bf16: ring %.3f ms, attention alone %.3f ms, messages "
            "alone %.3f ms: %.0f %% of them exposed\n",
            static_cast<long long>(s.tokens), static_cast<long long>(s.heads),
            static_cast<long long>(s.head_dim), row["ring_ms"].get<double>(),
            row["attention_ms"].get<double>(), row["messages_ms"].get<double>(),
            100 * row["exposed"].get<double>());
        report["rows"].push_back(std::move(row));
    }
}

}  // namespace

int main(int argc, char** argv) {
    return gpu_benchmark::run(argc, argv, "ring_overlap", 2, measure_all);
}
