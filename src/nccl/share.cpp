// SPDX-License-Identifier: Apache-2.0
// Memory of one GPU that the others write to, within a process and between processes of a host.
#include <nccl/channel.hpp>
#include <nccl/driver.hpp>
#include <nccl/text.hpp>

#include <exception>
#include <sstream>
#include <utility>

namespace latpar::inline v0::nccl::detail {
namespace {

using cuda::detail::check;

/// What ranks share, with the memory of other processes that this one opened for it.
class shared_mapping final : public memory_mapping {
public:
    shared_mapping(const std::shared_ptr<channel>& owner, int device) noexcept
        : owner_(owner), flag_(owner->failure_flag()), device_(device) {}
    ~shared_mapping() override {
        // Kernels that were queued before a failure may still write there.
        if (bases_.empty() || is_broken()) return;
        int before = 0;
        static_cast<void>(cudaGetDevice(&before));
        static_cast<void>(cudaSetDevice(device_));
        static_cast<void>(cudaDeviceSynchronize());
        for (void* base : bases_) static_cast<void>(cudaIpcCloseMemHandle(base));
        static_cast<void>(cudaSetDevice(before));
    }

    [[nodiscard]] bool is_broken() const noexcept override {
        const std::shared_ptr<channel> owner = owner_.lock();
        return std::uncaught_exceptions() > 0 || *flag_ || (owner && owner->has_failed());
    }

    [[nodiscard]] std::byte* open(const std::string& handle_text) {
        cudaIpcMemHandle_t handle{};
        from_hex(handle_text, &handle, sizeof handle);
        bases_.reserve(bases_.size() + 1);
        void* base = nullptr;
        check(cudaIpcOpenMemHandle(&base, handle, cudaIpcMemLazyEnablePeerAccess),
              "opening another process's device memory");
        bases_.push_back(base);
        return static_cast<std::byte*>(base);
    }

private:
    std::weak_ptr<channel> owner_;  // which may keep what it shares itself
    std::shared_ptr<const std::atomic<bool>> flag_;
    int device_;
    std::vector<void*> bases_;
};

/// The allocation that an address is in.
std::byte* base_of(std::byte* memory) {
    using function = CUresult(CUdeviceptr*, std::size_t*, CUdeviceptr);
    CUdeviceptr base = 0;
    std::size_t size = 0;
    check_driver(driver_function<function>("cuMemGetAddressRange")(
                     &base, &size, reinterpret_cast<CUdeviceptr>(memory)),
                 "cuMemGetAddressRange");
    return reinterpret_cast<std::byte*>(base);
}

/// Whether memory is a device's own, as cudaMalloc gives it.
bool is_of(std::byte* memory, memory_space space, int device) {
    return memory != nullptr && space == memory_space::cuda &&
           cuda::detail::device_of(memory) == device;
}

/// What a rank says of the memory that it shares.
struct offer {
    std::string host;
    std::string process;
    int device = 0;
    std::uintptr_t address = 0;
    index_t offset = 0;  ///< within the allocation that the handle is of
    std::string handle = "none";
};

std::string text_of(const offer& o) {
    return concat(o.host, ' ', o.process, ' ', o.device, ' ', o.address, ' ', o.offset, ' ',
                  o.handle);
}

offer offer_from(const std::string& text) {
    offer out;
    std::istringstream in(text);
    in >> out.host >> out.process >> out.device >> out.address >> out.offset >> out.handle;
    require<comm_error>(!in.fail(), "'", text, "' is no offer of memory; do all ranks share some?");
    return out;
}

/// Lets the current device reach another of this process.
void reach(int device, int peer) {
    if (device == peer) return;
    const cudaError_t status = cudaDeviceEnablePeerAccess(peer, 0);
    if (status == cudaErrorPeerAccessAlreadyEnabled) {
        static_cast<void>(cudaGetLastError());
        return;
    }
    check(status, "reaching device ", peer, " from device ", device);
}

}  // namespace

peer_memory channel::share(std::byte* memory, index_t bytes, memory_space space) {
    throw_if_failed();
    require_own_device();
    offer mine{host_name(), process_name(), device_};
    if (options_.writes_directly && bytes > 0 && is_of(memory, space, device_)) {
        try {
            std::byte* const base = base_of(memory);
            cudaIpcMemHandle_t handle{};
            check(cudaIpcGetMemHandle(&handle, base), "sharing device memory");
            mine.address = reinterpret_cast<std::uintptr_t>(memory);
            mine.offset = memory - base;
            mine.handle = hex_of(&handle, sizeof handle);
        } catch (const device_error&) {
            // Memory of another kind: nobody reaches it, and messages serve.
        }
    }
    peer_memory out;
    auto opened = std::make_shared<shared_mapping>(shared_from_this(), device_);
    bool reaches_all = true;
    const std::vector<std::string> texts = all_gather(text_of(mine));
    try {
        for (const std::string& text : texts) {
            const offer theirs = offer_from(text);
            reaches_all = reaches_all && theirs.address != 0 && theirs.host == mine.host;
            if (!reaches_all) break;
            if (theirs.process == mine.process) {
                reach(device_, theirs.device);
                out.of.push_back(reinterpret_cast<std::byte*>(theirs.address));
            } else {
                out.of.push_back(opened->open(theirs.handle) + theirs.offset);
            }
        }
    } catch (const device_error&) {
        reaches_all = false;
    }
    for (const std::string& text : all_gather(reaches_all ? "1" : "0")) {
        if (text != "1") return {};
    }
    out.mapping = std::move(opened);
    // What is written there is told by words.
    if (!family_->has_threads && !gates_) make_gates();
    return out;
}

void channel::meet(stream_ref user) {
    throw_if_failed();
    if (size_ == 1) return;
    require_own_device();
    flight& f = take();
    try {
        add_greetings(f);
        prepare(f, user);
        launch(f);
    } catch (...) {
        give_back(f);
        throw;
    }
    wait(f);
}

}  // namespace latpar::inline v0::nccl::detail
