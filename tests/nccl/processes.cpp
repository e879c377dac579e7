// SPDX-License-Identifier: Apache-2.0
// nccl::communicator with a process and a device for each rank, over MPI.
#include <latpar/mpi/communicator.hpp>
#include <latpar/nccl/communicator.hpp>

#include <comm/conformance.hpp>
#include <cuda/through_device.hpp>
#include <mpi/processes.hpp>
#include <nccl/direct.hpp>

using namespace latpar;

namespace {

/// NCCL among all processes, each with the device of its number.
nccl::communicator on_own_devices(const nccl::options& wanted) {
    auto world = mpi::communicator::world();
    cuda::set_device(world.rank());
    return nccl::communicator::over(std::move(world), wanted);
}

}  // namespace

TEST_CASE("NCCL over MPI conforms") {
    processes harness{through_device(on_own_devices({std::chrono::minutes(1)}))};
    conformance::run(harness, {.overtakes = false, .tells_mismatches = false});
}

TEST_CASE("GPUs of processes write to each other's memory, and Ulysses does") {
    auto comm = on_own_devices({std::chrono::minutes(1)});
    CHECK_NOTHROW(guarded(comm, [&] { check_direct(comm); }));
}

TEST_CASE("messages beside computing are written to the memory of processes") {
    auto comm = on_own_devices({std::chrono::minutes(1)});
    CHECK_NOTHROW(guarded(comm, [&] { check_targets(comm); }));
    for (const bool is_sent : {true, false}) {
        auto other = on_own_devices({});
        CHECK_NOTHROW(check_abandoned_targets(other, is_sent));
    }
}

TEST_CASE("a process that fails leaves nobody writing to memory that is gone") {
    for (int round = 0; round < 8; ++round) {
        auto comm = on_own_devices({});
        CHECK_NOTHROW(check_failing_direct(comm, round % 2, round / 2 % 2 == 1, round > 3));
    }
}

TEST_CASE("a process hears of a failure, however much it has to queue behind its messages") {
    for (const int failing : {0, 1}) {
        auto comm = on_own_devices({});
        CHECK_NOTHROW(check_held_up(comm, failing));
    }
}
