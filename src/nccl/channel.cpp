// SPDX-License-Identifier: Apache-2.0
// One NCCL communicator as seen by one rank: its beginning, its failures and its end.
#include <latpar/comm/agreement.hpp>

#include <cuda/detail/check.hpp>
#include <nccl/channel.hpp>
#include <nccl/check.hpp>
#include <nccl/patience.hpp>
#include <nccl/text.hpp>

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

namespace latpar::inline v0::nccl::detail {
namespace {

using clock = std::chrono::steady_clock;
using cuda::detail::check;

/// For each peer: a byte to send and one to receive, in a word, for NCCL reads whole ones.
constexpr int greeting_bytes = 4;

/// The device, by its own number and by where it is, for ranks to compare.
std::string name_of_device(int device) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "asking for device ", device);
    return concat("GPU ", hex_of(properties.uuid.bytes, sizeof properties.uuid.bytes), " (",
                  properties.name, ')');
}

std::string text_of(const options& wanted) {
    std::string out = concat(wanted.timeout.count(), " ms");
    if (!wanted.writes_directly) out += ", by messages alone";
    return out;
}

/// Whether what CUDA was asked about is still to be done. If it was wrong instead, that is not to
/// be found by whoever asks CUDA next.
bool is_pending(cudaError_t status) {
    if (status != cudaSuccess && status != cudaErrorNotReady) {
        static_cast<void>(cudaGetLastError());
    }
    return status == cudaErrorNotReady;
}

/// Errors: usage_error if two ranks have one device.
void require_own_devices(const std::vector<std::string>& devices) {
    for (std::size_t rank = 1; rank < devices.size(); ++rank) {
        const auto before = devices.begin() + static_cast<std::ptrdiff_t>(rank);
        const auto same = std::find(devices.begin(), before, devices[rank]);
        require(same == before, "ranks ", same - devices.begin(), " and ", rank, " both have ",
                devices[rank],
                ", which NCCL does not allow; give each rank a device of its own, or let them "
                "share one through cuda::staged");
    }
}

/// Errors: usage_error unless an NCCL communicator is what the bootstrap says.
void check_adopted(ncclComm_t comm, int rank, int size, int device) {
    int its_rank = -1;
    int its_size = -1;
    int its_device = -1;
    const bool is_known = ncclCommUserRank(comm, &its_rank) == ncclSuccess &&
                          ncclCommCount(comm, &its_size) == ncclSuccess &&
                          ncclCommCuDevice(comm, &its_device) == ncclSuccess;
    require(is_known && its_rank == rank && its_size == size && its_device == device,
            "the NCCL communicator that was given is rank ", its_rank, " of ", its_size,
            " on device ", its_device, ", the bootstrap rank ", rank, " of ", size,
            " and the current device ", device, "; they must be the same");
}

}  // namespace

channel::channel(any_communicator bootstrap, const options& wanted, std::shared_ptr<family> kin,
                 ncclComm_t adopted)
    : bootstrap_(std::move(bootstrap)),
      options_(wanted),
      family_(std::move(kin)),
      rank_(bootstrap_.rank()),
      size_(bootstrap_.size()) {
    awaited_.reserve(lead + 1);
    agree_on(bootstrap_, "the options of the NCCL communicator", text_of(options_));
    std::optional<std::string> complaint;
    std::string device = "no device";
    std::string id;
    try {
        check(cudaGetDevice(&device_), "asking for the current device");
        device = name_of_device(device_);
        int least = 0;
        int greatest = 0;
        check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities");
        check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest),
              "making a stream");
        if (adopted != nullptr) check_adopted(adopted, rank_, size_, device_);
        if (rank_ == 0 && size_ > 1 && adopted == nullptr) {
            ncclUniqueId made{};
            const ncclResult_t status = ncclGetUniqueId(&made);
            if (status != ncclSuccess) throw comm_error(failure_text(status, nullptr, "NCCL"));
            id = hex_of(&made, sizeof made);
        }
    } catch (const std::exception& error) {
        complaint = error.what();
    }
    try {
        agree_no_error(bootstrap_, complaint);
        if (size_ > 1) {
            require_own_devices(bootstrap_.control_all_gather(device));
            std::vector<std::string> processes = bootstrap_.control_all_gather(process_name());
            shares_process_ = std::ranges::count(processes, process_name()) > 1;
            std::ranges::sort(processes);
            if (std::ranges::adjacent_find(processes) != processes.end()) {
                family_->has_threads = true;
            }
            const std::string id_of_all = bootstrap_.control_all_gather(id).front();
            // The first error of any rank is that of all, and nobody waits for one that has left.
            guarded(bootstrap_, [&] {
                comm_ = adopted;
                if (comm_ == nullptr) create(id_of_all);
                warm_up();
            });
        } else {
            comm_ = adopted;
        }
        const std::lock_guard lock(family_->mutex);
        family_->members.push_back(this);
    } catch (...) {
        tear_down();
        throw;
    }
}

channel::~channel() {
    {
        const std::lock_guard lock(family_->mutex);
        std::erase(family_->members, this);
    }
    tear_down();
}

void channel::create(const std::string& id) {
    ncclUniqueId made{};
    from_hex(id, &made, sizeof made);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    is_queueing_ = true;
    settle(ncclCommInitRankConfig(&comm_, size_, made, rank_, &config),
           "creating an NCCL communicator");
}

void channel::warm_up() {
    const auto bytes = static_cast<std::size_t>(greeting_bytes * size_);
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "taking ", bytes, " bytes of the device");
    greetings_ = static_cast<std::byte*>(memory);
    check(cudaMemsetAsync(memory, 0, bytes, stream_), "clearing memory");
    meet({stream_});
    synchronize(stream_);
}

void channel::add_greetings(flight& f) const {
    for (int peer = 0; peer < size_; ++peer) {
        if (peer == rank_) continue;
        std::byte* const bytes = greetings_ + greeting_bytes * peer;
        f.sends.push_back({bytes, 1, dtype::u8, peer, memory_space::cuda});
        f.recvs.push_back({bytes + 1, 1, dtype::u8, peer, memory_space::cuda});
    }
}

void channel::tear_down() noexcept {
    try {
        // An exchange that no peer will meet any more ends with its communicator.
        const deadline limit = this->limit();
        patience waiting;
        while (comm_ != nullptr && is_under_way()) {
            end_when_due(limit);
            throw_if_failed();
            waiting.wait();
        }
        if (comm_ != nullptr && failure_.empty() && has_graphs_) {
            family_->end(
                {std::exchange(comm_, nullptr), device_, true, std::exchange(greetings_, nullptr)});
        } else if (comm_ != nullptr && failure_.empty()) {
            settle(ncclCommFinalize(comm_), "ending an NCCL communicator");
            if (!shares_process_) static_cast<void>(ncclCommDestroy(std::exchange(comm_, nullptr)));
        }
    } catch (...) {
        end("it could not be ended");
    }
    let_go();
    leave_gates();
    for (flight& f : flights_) {
        static_cast<void>(cudaEventDestroy(f.ready));
        static_cast<void>(cudaEventDestroy(f.done));
    }
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
    if (greetings_ != nullptr) static_cast<void>(cudaFree(greetings_));
}

void channel::end_when_due(deadline limit) noexcept {
    if (std::uncaught_exceptions() > 0) end("it was destroyed by an exception");
    if (clock::now() >= limit) end("it was destroyed while an exchange was waiting");
}

void channel::leave_gates() noexcept {
    if (!gates_) return;
    const deadline limit = this->limit();
    patience waiting;
    while (stream_ != nullptr && is_pending(cudaStreamQuery(stream_))) {
        try {
            if (failure_.empty()) hear();
        } catch (...) {
            // Which lets through what waits.
        }
        end_when_due(limit);
        if (!failure_.empty()) gates_->open();
        waiting.wait();
    }
}

void channel::let_go() noexcept {
    if (comm_ == nullptr) return;
    try {
        const std::lock_guard lock(family_->mutex);
        family_->retired.push_back({comm_, device_, failure_.empty()});
    } catch (const std::bad_alloc&) {
        // Its memory is lost with the rest.
    }
    comm_ = nullptr;
}

void channel::hear() {
    if (!failure_.empty()) {
        if (std::exchange(is_broken_, false)) bootstrap_.abort(failure_);
        throw comm_error(failure_);
    }
    try {
        // Moves nothing, and throws if a rank has aborted.
        any_request nothing = bootstrap_.start_exchange({}, {});
        static_cast<void>(nothing.test());
    } catch (const comm_error& error) {
        fail(error.what());
        throw;
    }
}

bool channel::has_failed() noexcept {
    try {
        // What a peer writes here it has written when the last exchange is done. Replays are not
        // waited for: nobody can tell when they are.
        const deadline limit = this->limit();
        patience waiting;
        while (is_under_way()) {
            throw_if_failed();
            if (clock::now() >= limit) abort("shared memory was given up while others used it");
            waiting.wait();
        }
        hear();
        return false;
    } catch (...) {
        return true;
    }
}

void channel::throw_if_failed() {
    hear();
    if (comm_ == nullptr) return;
    ncclResult_t status = ncclSuccess;
    if (ncclCommGetAsyncError(comm_, &status) != ncclSuccess || status == ncclSuccess ||
        status == ncclInProgress) {
        return;
    }
    const std::string reason = failure_text(status, comm_, "an exchange over NCCL");
    abort(reason);
    throw comm_error(reason);
}

void channel::settle(ncclResult_t status, const char* doing) {
    const deadline limit = this->limit();
    patience waiting;
    while (status == ncclInProgress) {
        hear();
        if (clock::now() >= limit) {
            const std::string reason =
                concat(doing, " took longer than ", options_.timeout.count(), " ms on rank ", rank_,
                       "; see that all ranks make the same calls");
            abort(reason);
            throw comm_error(reason);
        }
        waiting.wait();
        if (ncclCommGetAsyncError(comm_, &status) != ncclSuccess) status = ncclSystemError;
    }
    is_queueing_ = false;
    if (status == ncclSuccess) return;
    const std::string reason = failure_text(status, comm_, doing);
    abort(reason);
    throw comm_error(reason);
}

deadline channel::limit() const noexcept {
    using std::chrono::milliseconds;
    const clock::time_point now = clock::now();
    const auto most = std::chrono::duration_cast<milliseconds>(deadline::max() - now);
    return options_.timeout < most ? now + options_.timeout : deadline::max();
}

bool channel::is_under_way() const noexcept {
    return last_ != nullptr && is_pending(cudaEventQuery(last_));
}

bool channel::is_at_work() const noexcept {
    return has_graphs_ || is_under_way();  // nobody can tell what is replayed
}

bool channel::is_busy() const noexcept {
    return is_pending(cudaStreamQuery(stream_)) || is_at_work();
}

void channel::end(std::string_view reason) noexcept {
    if (failure_.empty()) failure_ = reason.empty() ? "aborted without a reason" : reason;
    *flag_ = true;
    // What is not at work may be let go of in the end.
    if (comm_ == nullptr || (shares_process_ && !is_queueing_ && !is_busy())) return;
    // While it is made there is nothing to queue.
    if (is_queueing_ && greetings_ != nullptr) await_queueing();
    family_->end({std::exchange(comm_, nullptr), device_, false, std::exchange(greetings_, nullptr),
                  std::exchange(stream_, nullptr), gates_});
}

void channel::await_queueing() noexcept {
    const clock::time_point limit = clock::now() + std::chrono::seconds(5);
    ncclResult_t status = ncclInProgress;
    patience waiting;
    while (ncclCommGetAsyncError(comm_, &status) == ncclSuccess && status == ncclInProgress &&
           clock::now() < limit) {
        // It may be held up by a queue that waits at them.
        if (gates_) gates_->open();
        waiting.wait();
    }
}

void channel::fail(std::string_view reason) {
    if (!failure_.empty()) return;
    // Whoever gives memory back now waits for the device, and so for what the kin wait for.
    std::vector<channel*> others;
    {
        const std::lock_guard lock(family_->mutex);
        others = family_->members;
    }
    for (channel* other : others) {
        if (other->gates_ && other->is_at_work()) other->gates_->open();
    }
    end(reason);
    bool have_graphs = has_graphs_;
    for (channel* other : others) {
        if (other == this || other->comm_ == nullptr || !other->is_at_work()) continue;
        other->is_broken_ = true;
        other->end(reason);
        have_graphs = have_graphs || other->has_graphs_;
    }
    // Who gives memory back holds locks of CUDA while the device is busy, which ending needs. With
    // graphs it lasts as long as they do.
    if (!have_graphs) family_->await_ends();
}

void channel::abort(std::string_view reason) {
    bootstrap_.abort(reason);
    is_broken_ = false;
    try {
        hear();  // what the bootstrap tells every rank, who aborted included
    } catch (const comm_error&) {
        return;
    }
    fail(reason);
}

void channel::synchronize(cudaStream_t stream) {
    const deadline limit = this->limit();
    patience waiting;
    for (;;) {
        const cudaError_t status = cudaStreamQuery(stream);
        if (status == cudaSuccess) return;
        if (status != cudaErrorNotReady) check(status, "work that was queued before");
        throw_if_failed();
        if (clock::now() >= limit) give_up("the device");
        waiting.wait();
    }
}

void channel::give_up(std::string_view what) {
    const std::string reason =
        concat(what, " of rank ", rank_, " was not done after ", options_.timeout.count(),
               " ms; a peer may have made other calls");
    abort(reason);
    throw comm_error(reason);
}

std::vector<std::string> channel::all_gather(std::string_view text) {
    throw_if_failed();
    std::vector<std::string> out;
    listening([&] { out = bootstrap_.control_all_gather(text); });
    return out;
}

std::shared_ptr<channel> channel::split(int color, int key) {
    throw_if_failed();
    std::optional<any_communicator> part = bootstrap_.split(color, key);
    if (!part) return nullptr;
    return std::make_shared<channel>(std::move(*part), options_, family_);
}

std::shared_ptr<channel> channel::duplicate() {
    throw_if_failed();
    return std::make_shared<channel>(bootstrap_.duplicate(), options_, family_);
}

std::shared_ptr<channel> channel::background() {
    std::shared_ptr<channel> out = duplicate();
    guarded(*out, [&] {
        out->make_gates();
        out->is_beside_ = true;
    });
    return out;
}

void channel::make_gates() {
    if (size_ == 1 || !options_.writes_directly) return;
    const std::vector<std::string> hosts =
        all_gather(gates::can_wait() ? host_name() : std::string("none"));
    if (std::ranges::count(hosts, host_name()) != size_) return;
    // All have the words of the first rank, or none has any.
    const std::size_t count = gates::words_of(size_);
    std::shared_ptr<shared_words> words;
    try {
        if (rank_ == 0) words = std::make_shared<shared_words>(count);
    } catch (const device_error&) {
        // No rank has any then.
    }
    const std::string name = all_gather(words ? words->name() : std::string()).front();
    try {
        if (!words && !name.empty()) words = std::make_shared<shared_words>(name, count);
        if (words) gates_ = std::make_shared<gates>(words, rank_, size_, stream_);
    } catch (const device_error&) {
        // Nor then.
    }
    const std::vector<std::string> verdicts = all_gather(gates_ ? "1" : "0");
    if (words) words->unname();
    if (std::ranges::count(verdicts, "1") == size_) return;
    if (words) synchronize(stream_);  // which may yet try them
    gates_ = nullptr;
}

}  // namespace latpar::inline v0::nccl::detail
