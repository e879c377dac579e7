// SPDX-License-Identifier: Apache-2.0
// cuda::staged over MPI: processes that share a device, and may have no NCCL.
#include <latpar/cuda/staged.hpp>
#include <latpar/mpi/communicator.hpp>

#include <comm/conformance.hpp>
#include <cuda/device_lab.hpp>
#include <cuda/through_device.hpp>
#include <mpi/processes.hpp>

using namespace latpar;

TEST_CASE("staged MPI conforms through device memory") {
    processes harness{through_device(cuda::staged(mpi::communicator::world()))};
    conformance::run(harness);
}
