// SPDX-License-Identifier: Apache-2.0
// cuda::staged over MPI: processes that share a device, and may have no NCCL.
#include <latpar/cuda/staged.hpp>
#include <latpar/mpi/communicator.hpp>

#include <comm/conformance.hpp>
#include <cuda/device_lab.hpp>
#include <cuda/through_device.hpp>

using namespace latpar;

namespace {

/// All processes of the job. Verdicts travel on a channel of their own, so that a failure of the
/// one under test is still reported by all.
struct processes {
    through_device<cuda::staged<mpi::communicator>> comm{cuda::staged(mpi::communicator::world())};
    mpi::communicator verdicts = mpi::communicator::world();

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
};

}  // namespace

TEST_CASE("staged MPI conforms through device memory") {
    processes harness;
    conformance::run(harness);
}
