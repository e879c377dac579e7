// SPDX-License-Identifier: Apache-2.0
// A communicator and kernels that note what is asked of them.
#pragma once

#include <latpar/comm/communicator.hpp>
#include <latpar/kernel/host.hpp>

#include <memory>
#include <string>
#include <utility>
#include <vector>

/// What one rank did, and the exchanges that it has in flight.
struct call_log {
    std::vector<std::string> calls;
    int in_flight = 0;
    int copies = 0;  ///< tensors, each of them one pass
};

/// Notes exchanges as "start (sends, receives)", and "wait" or "wait on the host".
template <latpar::communicator C>
class logged_communicator {
public:
    class request {
    public:
        using inner_type = decltype(std::declval<C&>().start_exchange({}, {}, {}));
        request(inner_type inner, call_log* log)
            : inner_(std::make_unique<inner_type>(std::move(inner))), log_(log) {
            ++log_->in_flight;
        }
        request(request&&) noexcept = default;
        request& operator=(request&& other) noexcept {
            std::swap(inner_, other.inner_);
            std::swap(log_, other.log_);
            return *this;
        }
        ~request() {
            if (inner_) --log_->in_flight;
        }
        [[nodiscard]] bool test() { return inner_->test(); }
        void wait() {
            inner_->wait();
            log_->calls.emplace_back("wait");
        }
        [[nodiscard]] bool wait_until(latpar::deadline when) {
            const bool is_done = inner_->wait_until(when);
            if (is_done) log_->calls.emplace_back("wait on the host");
            return is_done;
        }

    private:
        std::unique_ptr<inner_type> inner_;
        call_log* log_;
    };

    logged_communicator(C inner, call_log& log) : inner_(std::move(inner)), log_(&log) {}

    [[nodiscard]] int rank() const noexcept { return inner_.rank(); }
    [[nodiscard]] int size() const noexcept { return inner_.size(); }
    [[nodiscard]] bool reaches(latpar::memory_space space) const noexcept {
        return inner_.reaches(space);
    }
    [[nodiscard]] request start_exchange(std::span<const latpar::send_op> sends,
                                         std::span<const latpar::recv_op> recvs,
                                         latpar::stream_ref stream = {}) {
        log_->calls.push_back(
            latpar::detail::concat("start (", sends.size(), ", ", recvs.size(), ")"));
        return {inner_.start_exchange(sends, recvs, stream), log_};
    }
    [[nodiscard]] std::optional<logged_communicator> split(int color, int key) {
        std::optional<C> part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return logged_communicator(std::move(*part), *log_);
    }
    [[nodiscard]] logged_communicator duplicate() { return {inner_.duplicate(), *log_}; }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner_.abort(reason); }

private:
    C inner_;
    call_log* log_;
};

/// The host's kernels, which count the tensors that they copy.
class logged_kernels {
public:
    explicit logged_kernels(call_log& log) : log_(&log) {}

    [[nodiscard]] latpar::memory_space space() const noexcept { return host_.space(); }
    void copy(latpar::const_latent_view source, latpar::latent_view target,
              latpar::stream_ref stream = {}) const {
        ++log_->copies;
        host_.copy(source, target, stream);
    }
    void copy_all(std::span<const latpar::kernel::copy_pair> copies,
                  latpar::stream_ref stream = {}) const {
        log_->copies += static_cast<int>(copies.size());
        host_.copy_all(copies, stream);
    }
    void round(latpar::latent_view values, latpar::dtype type,
               latpar::stream_ref stream = {}) const {
        host_.round(values, type, stream);
    }
    void stitch(latpar::latent_view output, latpar::axis along,
                std::span<const latpar::kernel::stitch_part> parts,
                latpar::stream_ref stream = {}) const {
        host_.stitch(output, along, parts, stream);
    }
    void linear_combination(std::span<const latpar::const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latpar::latent_view> outputs,
                            latpar::stream_ref stream = {}) const {
        host_.linear_combination(inputs, coefficients, outputs, stream);
    }
    void stitch_combination(const latpar::kernel::stitched_input& stitched,
                            std::span<const latpar::const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latpar::latent_view> outputs,
                            latpar::stream_ref stream = {}) const {
        host_.stitch_combination(stitched, inputs, coefficients, outputs, stream);
    }
    void merge_attention(latpar::latent_view output, latpar::latent_view lse,
                         latpar::const_latent_view part, latpar::const_latent_view part_lse,
                         latpar::stream_ref stream = {}) const {
        host_.merge_attention(output, lse, part, part_lse, stream);
    }

private:
    latpar::kernel::host host_;
    call_log* log_;
};
