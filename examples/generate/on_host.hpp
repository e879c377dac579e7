// SPDX-License-Identifier: Apache-2.0
// A rank that computes on the processor, and what every place to compute at has.
#pragma once

#include <latpar/comm/mesh.hpp>
#include <latpar/core/memory.hpp>
#include <latpar/kernel/host.hpp>
#include <latpar/schedule/philox_noise.hpp>

#include <generate/job.hpp>
#include <generate/rank.hpp>
#include <generate/run.hpp>
#include <wan/trunk.hpp>

#include <memory>
#include <span>
#include <string_view>
#include <utility>

namespace generate {

/// Where a rank computes: on the processor. See on_cuda for a GPU, whose members are the same.
///
/// It lives as long as anything that was made with it.
class on_host {
public:
    using trunk = wan::trunk;
    using kernels = latpar::kernel::host;
    using noise = latpar::philox_noise;

    /// Ranks: all of `world`.
    on_host(latpar::any_communicator& world, const job& j, const surroundings& around)
        : on_host(world,
                  j.options.threads > 0 ? j.options.threads : threads_for(around.ranks_on_host),
                  around.backend) {}

    /// The ranks along the axes of a mesh, metered. Ranks: all.
    [[nodiscard]] latpar::mesh<communicator> mesh_of(const latpar::mesh_shape& shape) {
        return latpar::mesh<communicator>(latpar::mesh<latpar::any_communicator>(*world_, shape));
    }
    /// The same place for one rank alone, which has all of it, with a memory account of its own.
    [[nodiscard]] on_host alone(latpar::any_communicator& one) const {
        return {one, threads_for(1), backend_};
    }

    /// What policies and models take their memory from, counted.
    [[nodiscard]] latpar::memory_source memory() noexcept {
        return {&memory_, latpar::memory_space::host};
    }
    [[nodiscard]] latpar::index_t peak_bytes() const noexcept { return memory_.peak_bytes(); }
    [[nodiscard]] latpar::stream_ref stream() const noexcept { return {}; }

    /// One model's.
    [[nodiscard]] std::shared_ptr<trunk::executor> executor() {
        return std::make_shared<wan::executor>(wan::executor_options{threads_, "auto", memory()});
    }
    /// Weights where they are computed with; they are not in the account.
    [[nodiscard]] std::shared_ptr<const trunk::weights> weights(
        std::shared_ptr<const wan::weights> loaded) {
        return loaded;
    }

    /// Waits until what was asked for is done.
    void synchronize() {}
    /// A copy in host memory, once what was asked for is done. Errors: as synchronize.
    [[nodiscard]] latpar::latent to_host(latpar::const_latent_view from) {
        latpar::latent out(from.extents, from.type);
        kernels{}.copy(from, out.view());
        return out;
    }
    /// Bytes of the host to where a view lies.
    void to_device(std::span<const std::byte> from, latpar::latent_view to) {
        std::copy(from.begin(), from.end(), to.data);
    }

    /// Whether the host waits for messages, and not for a device before them, so that it can tell
    /// for how long.
    [[nodiscard]] bool waits_for_messages() const noexcept { return true; }
    /// Enters what it is. Ranks: all.
    void describe(report& figures) {
        figures.backend = backend_;
        figures.device = "cpu";
        figures.threads = threads_;
    }
    /// Ends the waiting of the others.
    void abort(std::string_view) {}

private:
    on_host(latpar::any_communicator& world, int threads, std::string backend)
        : world_(&world), threads_(threads), backend_(std::move(backend)) {}

    latpar::any_communicator* world_;
    int threads_;
    std::string backend_;
    latpar::counting_resource memory_;
};

}  // namespace generate
