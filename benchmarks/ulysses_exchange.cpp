// SPDX-License-Identifier: Apache-2.0
// The exchanges of Ulysses between two GPUs against NCCL's bare send and receive of what crosses.
#include <latpar/comm/collectives.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>
#include <latpar/layer/ulysses.hpp>
#include <latpar/nccl/communicator.hpp>

#include <gpu_benchmark.hpp>

#include <array>
#include <vector>

using namespace latpar;
using gpu_benchmark::event;
using gpu_benchmark::median;
using gpu_benchmark::must;

namespace {

/// An attention that does nothing but take the time.
struct clock_in_between {
    event* reached;
    void operator()(layer::const_heads_view, layer::const_heads_view, layer::const_heads_view,
                    layer::heads_view, layer::lse_view, stream_ref stream) const {
        reached->record(stream);
    }
};

struct shape {
    index_t tokens;  ///< of all ranks
    index_t heads;
    index_t head_dim;
};

constexpr int rounds = 40;
constexpr int warm_up = 5;

/// What a rank measures of one shape, in milliseconds.
nlohmann::json measure(nccl::communicator& comm, const shape& s, dtype type) {
    cuda::stream stream;
    cuda::device_memory memory;
    event begin, reached, end;
    const layer::ulysses_plan plan =
        layer::plan_ulysses({s.heads, s.heads, s.head_dim, type},
                            {layer::even_tokens(s.tokens, comm.size())}, comm.size());
    const index_t own = plan.tokens_of(comm.rank());
    std::vector<tensor<3>> tensors;
    for (int i = 0; i < 4; ++i) {
        tensors.emplace_back(std::array{own, s.heads, s.head_dim}, type, memory.source());
        must(cudaMemset(tensors.back().view().data, 60 + i,
                        static_cast<std::size_t>(tensors.back().bytes())));
    }
    layer::ulysses policy(clock_in_between{&reached}, comm, plan, cuda::kernels{}, memory.source());
    const int peer = 1 - comm.rank();
    const auto crossing = [&](int of) {
        // Elements of one tensor whose heads belong to the other rank.
        return plan.tokens_of(of) * plan.shares[static_cast<std::size_t>(1 - of)].count *
               s.head_dim;
    };
    const index_t most = std::max(crossing(0), crossing(1));
    tensor<1> out({3 * most}, type, memory.source());
    tensor<1> in({3 * most}, type, memory.source());
    gpu_benchmark::head_start ahead;
    std::vector<double> there, back, bare_there, bare_back;
    for (int round = 0; round < rounds + warm_up; ++round) {
        const auto bare = [&](index_t tensors_each, std::vector<double>& times) {
            // As a program would that has nothing but NCCL: one group on its stream.
            const auto bytes = [&](int of) {
                return static_cast<std::size_t>(tensors_each * crossing(of) * size_of(type));
            };
            barrier(comm);
            ahead.give(stream);
            begin.record(stream);
            const auto native = static_cast<cudaStream_t>(stream.ref().handle);
            ncclGroupStart();
            ncclSend(out.view().data, bytes(comm.rank()), ncclUint8, peer, comm.handle(), native);
            ncclRecv(in.view().data, bytes(peer), ncclUint8, peer, comm.handle(), native);
            ncclResult_t status = ncclGroupEnd();
            while (status == ncclInProgress) ncclCommGetAsyncError(comm.handle(), &status);
            if (status != ncclSuccess) throw comm_error(ncclGetErrorString(status));
            end.record(stream);
            const double time = end.milliseconds_since(begin);
            if (round >= warm_up) times.push_back(time);
        };
        bare(3, bare_there);
        bare(1, bare_back);
        barrier(comm);
        ahead.give(stream);
        begin.record(stream);
        policy(tensors[0].view(), tensors[1].view(), tensors[2].view(), tensors[3].view(), {},
               stream);
        end.record(stream);
        const double total = end.milliseconds_since(begin);
        if (round < warm_up) continue;
        there.push_back(reached.milliseconds_since(begin));
        back.push_back(total - there.back());
    }
    const double bytes = static_cast<double>(crossing(comm.rank()) * size_of(type));
    return {{"tokens", s.tokens},
            {"heads", s.heads},
            {"head_dim", s.head_dim},
            {"type", name_of(type)},
            {"crossing_bytes_of_one_tensor", bytes},
            {"qkv_ms", median(there)},
            {"qkv_bare_nccl_ms", median(bare_there)},
            {"qkv_over_bare", median(there) / median(bare_there)},
            {"qkv_bare_gb_per_s", 3e-6 * bytes / median(bare_there)},
            {"back_ms", median(back)},
            {"back_bare_nccl_ms", median(bare_back)},
            {"back_over_bare", median(back) / median(bare_back)}};
}

void measure_all(nlohmann::json& report) {
    report["rows"] = nlohmann::json::array();
    const std::vector<shape> shapes{
        {32760, 12, 128}, {20280, 12, 128}, {75600, 40, 128}, {32760, 24, 64}};
    for (const shape& s : shapes) {
        for (const bool directly : {false, true}) {
            std::array<nlohmann::json, 2> rows;
            thread_team(2).run([&](thread_communicator& threads) {
                cuda::set_device(threads.rank());
                nccl::options wanted;
                wanted.writes_directly = directly;
                auto comm = nccl::communicator::over(threads.duplicate(), wanted);
                rows[static_cast<std::size_t>(comm.rank())] = measure(comm, s, dtype::bf16);
            });
            // An exchange is done when the slower rank has it.
            nlohmann::json& row = rows[rows[0]["qkv_ms"] < rows[1]["qkv_ms"] ? 1 : 0];
            row["writes_directly"] = directly;
            std::printf(
                "[%5lld, %2lld, %3lld] bf16 %s: q, k, v %.3f ms, %.2f of bare NCCL (%.0f "
                "GB/s); back %.3f ms, %.2f of bare NCCL\n",
                static_cast<long long>(s.tokens), static_cast<long long>(s.heads),
                static_cast<long long>(s.head_dim), directly ? "directly" : "by messages",
                row["qkv_ms"].get<double>(), row["qkv_over_bare"].get<double>(),
                row["qkv_bare_gb_per_s"].get<double>(), row["back_ms"].get<double>(),
                row["back_over_bare"].get<double>());
            report["rows"].push_back(std::move(row));
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    return gpu_benchmark::run(argc, argv, "ulysses_exchange", 2, measure_all);
}
