// SPDX-License-Identifier: Apache-2.0
// Ranks with GPUs, by way of the installed package and the host's compiler.
#include "sampling.hpp"

#include <latpar/cuda/device.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/staged.hpp>
#include <latpar/nccl/collectives.hpp>

#include <atomic>
#include <iostream>

/// Adds up a value that each rank has on a device of its own.
bool adds(latpar::thread_communicator& threads) {
    latpar::cuda::set_device(threads.rank());
    auto comm = latpar::nccl::communicator::over(threads.duplicate());
    latpar::cuda::device_memory memory;
    latpar::tensor<1> values({1}, latpar::dtype::f32, memory.source());
    float here = comm.rank() == 0 ? 1.0f : 2.0f;
    latpar::cuda::copy_bytes(values.view().data, &here, sizeof(here));
    latpar::nccl::all_reduce(comm, values.view(), latpar::reduce_op::sum);
    latpar::cuda::copy_bytes(&here, values.view().data, sizeof(here));
    return here == 3;
}

int main() {
    const int devices = latpar::cuda::device_count();
    if (devices < 2) std::cout << devices << " CUDA devices: nothing is sent by NCCL\n";
    std::atomic<int> agreed = 0;
    latpar::thread_team team(2);
    team.run([&](latpar::thread_communicator& threads) {
        // What has no memory on a device needs none.
        latpar::cuda::staged comm(threads.duplicate());
        const bool sampled = sample_and_compare(comm);
        if (sampled && (devices < 2 || adds(threads))) ++agreed;
    });
    return agreed == 2 ? 0 : 1;
}
