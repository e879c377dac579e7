// SPDX-License-Identifier: Apache-2.0
// nccl::communicator with a process and a device for each rank, over MPI.
#include <latpar/mpi/communicator.hpp>
#include <latpar/nccl/communicator.hpp>

#include <comm/conformance.hpp>
#include <cuda/through_device.hpp>
#include <nccl/devices.hpp>
#include <nccl/direct.hpp>

using namespace latpar;

namespace {

/// All processes of the job. Verdicts travel on a channel of their own, so that a failure of the
/// one under test is still reported by all.
struct processes {
    explicit processes(const nccl::options& wanted)
        : comm(nccl::communicator::over(mpi::communicator::world(), wanted)) {}

    template <class F>
    std::vector<std::string> run(F f) {
        std::string verdict;
        try {
            verdict = f(comm);
        } catch (const std::exception& error) {
            verdict = detail::concat("threw: ", error.what());
        }
        return verdicts.control_all_gather(verdict);
    }

    through_device<nccl::communicator> comm;
    mpi::communicator verdicts = mpi::communicator::world();
};

/// The device of this process's number, if there are enough.
bool has_own_device() {
    const mpi::communicator world = mpi::communicator::world();
    if (!has_devices(world.size())) return false;
    cuda::set_device(world.rank());
    return true;
}

}  // namespace

TEST_CASE("NCCL over MPI conforms") {
    if (!has_own_device()) return;
    processes harness({std::chrono::minutes(1)});
    conformance::run(harness, {.overtakes = false, .tells_mismatches = false});
}

TEST_CASE("GPUs of processes write to each other's memory, and Ulysses does") {
    if (!has_own_device()) return;
    auto comm = nccl::communicator::over(mpi::communicator::world());
    CHECK_NOTHROW(check_direct(comm));
}
