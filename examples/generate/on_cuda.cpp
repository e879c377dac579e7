// SPDX-License-Identifier: Apache-2.0
// Ranks that compute on GPUs.
#include <latpar/comm/agreement.hpp>
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/philox_noise.hpp>
#include <latpar/cuda/staged.hpp>
#include <latpar/cuda/stream.hpp>

#include <cuda_runtime_api.h>
#include <generate/on_cuda.hpp>
#include <generate/run_on.hpp>
#include <unistd.h>
#include <wan/cuda/transformer.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <iomanip>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

#if defined(LATPAR_GENERATE_NCCL)
#include <latpar/nccl/communicator.hpp>
#endif

namespace generate {
namespace {

using latpar::index_t;
using latpar::detail::concat;
using latpar::detail::require;

#if defined(LATPAR_GENERATE_NCCL)
constexpr bool has_nccl = true;
#else
constexpr bool has_nccl = false;
#endif

/// The weights on a device, one copy for all ranks of this process that compute there.
///
/// Stream: blocks the host for the first of them.
std::shared_ptr<const wan::cuda::weights> weights_on(int device,
                                                     std::shared_ptr<const wan::weights> loaded,
                                                     latpar::dtype type) {
    struct copy {
        std::shared_ptr<const wan::weights> loaded;  // so that its address stays its name
        latpar::cuda::device_memory memory;
        std::shared_ptr<const wan::cuda::weights> there{};
    };
    struct shelf {
        std::mutex mutex;
        std::weak_ptr<copy> held{};
    };
    static std::mutex mutex;
    static std::map<std::pair<int, const wan::weights*>, shelf> shelves;
    shelf& at = [&]() -> shelf& {
        const std::lock_guard lock(mutex);
        return shelves[{device, loaded.get()}];
    }();
    const std::lock_guard lock(at.mutex);
    std::shared_ptr<copy> out = at.held.lock();
    if (!out) {
        out = std::make_shared<copy>(copy{loaded, latpar::cuda::device_memory(device)});
        out->there = wan::cuda::upload_weights(*loaded, type, out->memory.source());
        at.held = out;
    }
    const wan::cuda::weights* const there = out->there.get();
    return {std::move(out), there};
}

/// Which device, wherever in the world: ranks may know the same one under different numbers.
std::string identity_of(int device) {
    cudaDeviceProp found{};
    const cudaError_t status = cudaGetDeviceProperties(&found, device);
    require<latpar::device_error>(status == cudaSuccess, "asking for device ", device,
                                  " failed: ", cudaGetErrorString(status));
    std::ostringstream out;
    for (const char byte : found.uuid.bytes) {
        out << std::hex << std::setw(2) << std::setfill('0')
            << static_cast<int>(static_cast<unsigned char>(byte));
    }
    return std::move(out).str();
}

/// Makes this rank's device current. Ranks: all of `world`.
int take_device(latpar::any_communicator& world, const options& wanted) {
    std::array<char, 256> host{};
    static_cast<void>(gethostname(host.data(), host.size() - 1));
    const auto hosts = world.control_all_gather(host.data());
    const auto mine = hosts.begin() + world.rank();
    const auto place = static_cast<int>(std::count(hosts.begin(), mine, *mine));
    int device = 0;
    std::optional<std::string> complaint;
    try {
        require_device(wanted);
        device = place % latpar::cuda::device_count();
        latpar::cuda::set_device(device);
    } catch (const std::exception& error) {
        complaint = error.what();
    }
    latpar::agree_no_error(world, complaint);
    return device;
}

/// Where a rank computes: on a GPU, on a stream of its own. Its members are those of on_host.
class on_cuda {
public:
    using trunk = wan::cuda::trunk;
    using kernels = latpar::cuda::kernels;
    using noise = latpar::cuda::philox_noise;

    on_cuda(latpar::any_communicator& world, const job& j, const surroundings& around)
        : on_cuda(world, take_device(world, j.options), j.options.precision) {
        const auto devices = world.control_all_gather(identity_of(device_));
        const std::set<std::string> different(devices.begin(), devices.end());
        const bool is_apart = different.size() == devices.size();
        const transport wanted = j.options.backend;
        require(wanted != transport::nccl || is_apart,
                "--backend nccl needs a device for each "
                "rank, and ",
                devices.size(), " ranks have ", different.size(),
                "; use --backend staged, or fewer ranks");
        backend_ = around.backend + (world.reaches(trunk::space) ? "" : "+staged");
        const bool talks = world.size() > 1 && is_apart;
        if (has_nccl && (wanted == transport::nccl || (wanted == transport::automatic && talks))) {
            open_nccl();
        }
    }

    [[nodiscard]] latpar::mesh<communicator> mesh_of(const latpar::mesh_shape& shape) {
        using latpar::any_communicator;
#if defined(LATPAR_GENERATE_NCCL)
        if (nccl_) {
            return latpar::mesh<communicator>(latpar::mesh<any_communicator>(
                latpar::mesh<latpar::nccl::communicator>(*nccl_, shape)));
        }
#endif
        using staged = latpar::cuda::staged<any_communicator>;
        return latpar::mesh<communicator>(latpar::mesh<any_communicator>(
            latpar::mesh<staged>(latpar::mesh<any_communicator>(*world_, shape))));
    }
    [[nodiscard]] on_cuda alone(latpar::any_communicator& one) const {
        return {one, device_, precision_};
    }

    [[nodiscard]] latpar::memory_source memory() noexcept {
        return {&memory_, trunk::space};
    }
    [[nodiscard]] index_t peak_bytes() const noexcept {
        return memory_.peak_bytes();
    }
    [[nodiscard]] latpar::stream_ref stream() const noexcept {
        return stream_;
    }

    [[nodiscard]] std::shared_ptr<trunk::executor> executor() {
        return std::make_shared<trunk::executor>(wan::cuda::executor_options{precision_, memory()});
    }
    [[nodiscard]] std::shared_ptr<const trunk::weights> weights(
        std::shared_ptr<const wan::weights> loaded) {
        return weights_on(device_, std::move(loaded), precision_);
    }

    void synchronize() {
#if defined(LATPAR_GENERATE_NCCL)
        if (nccl_) return nccl_->synchronize(stream_);
#endif
        stream_.synchronize();
    }
    [[nodiscard]] latpar::latent to_host(latpar::const_latent_view from) {
        synchronize();
        latpar::latent out(from.extents, from.type);
        // Channel by channel: the frames of one lie in one piece, in a part of a video too.
        const auto [samples, channels, frames, height, width] = from.extents;
        require(
            from.strides[2] == height * width && from.strides[3] == width && from.strides[4] == 1,
            "the frames of a latent are to be dense, to be copied to the host");
        const index_t bytes = frames * height * width * latpar::size_of(from.type);
        std::byte* to = out.view().data;
        for (index_t sample = 0; sample < samples; ++sample) {
            for (index_t channel = 0; channel < channels; ++channel, to += bytes) {
                const index_t at = sample * from.strides[0] + channel * from.strides[1];
                latpar::cuda::copy_bytes(to, from.data + at * latpar::size_of(from.type), bytes,
                                         stream_);
            }
        }
        return out;
    }
    void to_device(std::span<const std::byte> from, latpar::latent_view to) {
        latpar::cuda::copy_bytes(to.data, from.data(), static_cast<index_t>(from.size()), stream_);
    }

    [[nodiscard]] bool waits_for_messages() const noexcept {
        return backend_ != "nccl";
    }
    void describe(report& figures) {
        figures.backend = backend_;
        figures.device = "cuda";
        figures.devices = world_->control_all_gather(
            concat(latpar::cuda::device_name(device_), ", device ", device_));
        figures.precision = latpar::name_of(precision_);
        figures.threads = 1;
    }
    void abort([[maybe_unused]] std::string_view reason) {
#if defined(LATPAR_GENERATE_NCCL)
        if (nccl_) nccl_->abort(reason);
#endif
    }

private:
    on_cuda(latpar::any_communicator& world, int device, latpar::dtype precision)
        : world_(&world), device_(device), precision_(precision), on_device_(device) {}

    void open_nccl() {
#if defined(LATPAR_GENERATE_NCCL)
        // The host may be far ahead of the device when it waits: its patience is for whole steps.
        nccl_.emplace(latpar::nccl::communicator::over(world_->duplicate(),
                                                       {.timeout = std::chrono::hours(24)}));
        backend_ = "nccl";
#endif
    }

    latpar::any_communicator* world_;
    int device_;
    latpar::dtype precision_;
    std::string backend_;
    latpar::cuda::device_memory on_device_;
    latpar::counting_resource memory_{&on_device_};
    latpar::cuda::stream stream_;
#if defined(LATPAR_GENERATE_NCCL)
    std::optional<latpar::nccl::communicator> nccl_;
#endif
};

}  // namespace

void require_device(const options& wanted) {
    require(wanted.device == device_kind::cpu || latpar::cuda::device_count() > 0,
            "--device cuda: no CUDA device is here, or no driver for it; use --device cpu");
}

void require_built(const options& wanted) {
    require(has_nccl || wanted.backend != transport::nccl,
            "--backend nccl is not part of this build; configure with -DLATPAR_ENABLE_NCCL=ON, or "
            "use --backend staged");
}

ending run_on_cuda(latpar::any_communicator& world, const job& j, const surroundings& around,
                   report& figures) {
    return run_on<on_cuda>(world, j, around, figures);
}

}  // namespace generate
