// SPDX-License-Identifier: Apache-2.0
// The conformance suite on an MPI that says that it reaches CUDA memory.
//
// It says so because this program answers in its place, and the memory is the host's: what is
// tested is that messages in CUDA memory are taken, and that all of them go through MPI.
#include <latpar/mpi/communicator.hpp>

#include <comm/conformance.hpp>
#include <mpi/processes.hpp>

extern "C" int MPIX_Query_cuda_support(void);
extern "C" int MPIX_Query_cuda_support(void) {
    return 1;
}

using namespace latpar;

namespace {

/// Passes host memory off as CUDA memory.
struct relabelled {
    mpi::communicator inner;
    std::vector<send_op> out{};
    std::vector<recv_op> in{};

    [[nodiscard]] int rank() const noexcept { return inner.rank(); }
    [[nodiscard]] int size() const noexcept { return inner.size(); }
    [[nodiscard]] bool reaches(memory_space space) const noexcept {
        return space == memory_space::host && inner.reaches(memory_space::cuda);
    }
    [[nodiscard]] mpi::request start_exchange(std::span<const send_op> sends,
                                              std::span<const recv_op> recvs,
                                              stream_ref stream = {}) {
        out.assign(sends.begin(), sends.end());
        in.assign(recvs.begin(), recvs.end());
        const auto relabel = [](auto& op) {
            detail::require(op.space == memory_space::host, "this is cuda memory already");
            op.space = memory_space::cuda;
        };
        std::for_each(out.begin(), out.end(), relabel);
        std::for_each(in.begin(), in.end(), relabel);
        return inner.start_exchange(out, in, stream);
    }
    [[nodiscard]] std::optional<relabelled> split(int color, int key) {
        auto part = inner.split(color, key);
        if (!part) return std::nullopt;
        return relabelled{std::move(*part)};
    }
    [[nodiscard]] relabelled duplicate() { return {inner.duplicate()}; }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner.abort(reason); }
};
static_assert(communicator<relabelled>);

}  // namespace

TEST_CASE("an MPI that reaches CUDA memory conforms with it") {
    processes harness{relabelled{mpi::communicator::world()}};
    if (!harness.comm.inner.reaches(memory_space::cuda)) {
        SUCCEED("this MPI is not asked, as it has no such question");
        return;
    }
    conformance::run(harness);
}

TEST_CASE("an MPI that reaches CUDA memory matches messages between the memories") {
    processes harness{relabelled{mpi::communicator::world()}};
    if (!harness.comm.inner.reaches(memory_space::cuda)) {
        SUCCEED("this MPI is not asked, as it has no such question");
        return;
    }
    const auto verdicts = harness.run([](relabelled& comm) {
        // From itself too: the first from one memory, the second from the other.
        mpi::communicator& both = comm.inner;
        const conformance::bytes first = conformance::filled(1000, 1);
        const conformance::bytes second = conformance::filled(2000, 2);
        conformance::bytes got_first(1000);
        conformance::bytes got_second(2000);
        const auto on_device = [](auto op) {
            op.space = memory_space::cuda;
            return op;
        };
        exchange(both,
                 std::array{on_device(conformance::to(both.rank(), first)),
                            conformance::to(both.rank(), second)},
                 std::array{conformance::from(both.rank(), got_first),
                            on_device(conformance::from(both.rank(), got_second))});
        return conformance::complain(got_first == first && got_second == second, "wrong content");
    });
    for (const std::string& verdict : verdicts) CHECK(verdict == "");
}
