// SPDX-License-Identifier: Apache-2.0
// Owned memory: buffers and tensors from the user's memory resource, and a resource that counts.
#pragma once

#include <latpar/core/view.hpp>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory_resource>
#include <utility>

namespace latpar::inline v0 {

/// The memory that a policy may take, and where it lives.
///
/// For a GPU the resource hands out device pointers; nothing on the host reads through them.
struct memory_source {
    std::pmr::memory_resource* resource = std::pmr::get_default_resource();
    memory_space space = memory_space::host;
};

namespace detail {
/// `bytes` rounded up to where the next thing may begin in a shared buffer.
[[nodiscard]] constexpr index_t aligned(index_t bytes) noexcept {
    return (bytes + 63) / 64 * 64;
}
}  // namespace detail

/// A move-only run of bytes, aligned to 64.
class buffer {
public:
    static constexpr std::size_t alignment = 64;

    buffer() = default;
    explicit buffer(index_t bytes, memory_source source = {}) : source_(source), bytes_(bytes) {
        detail::require(bytes >= 0, "a buffer of ", bytes, " bytes was asked for");
        if (bytes > 0) {
            data_ = static_cast<std::byte*>(
                source.resource->allocate(static_cast<std::size_t>(bytes), alignment));
        }
    }
    buffer(buffer&& other) noexcept
        : source_(other.source_),
          data_(std::exchange(other.data_, nullptr)),
          bytes_(std::exchange(other.bytes_, 0)) {}
    buffer& operator=(buffer&& other) noexcept {
        buffer taken(std::move(other));
        std::swap(source_, taken.source_);
        std::swap(data_, taken.data_);
        std::swap(bytes_, taken.bytes_);
        return *this;
    }
    buffer(const buffer&) = delete;
    buffer& operator=(const buffer&) = delete;
    ~buffer() {
        if (data_) source_.resource->deallocate(data_, static_cast<std::size_t>(bytes_), alignment);
    }

    [[nodiscard]] std::byte* data() const noexcept { return data_; }
    [[nodiscard]] index_t bytes() const noexcept { return bytes_; }
    [[nodiscard]] memory_space space() const noexcept { return source_.space; }
    [[nodiscard]] const memory_source& source() const noexcept { return source_; }

    /// Gives the memory up: it is never given back, since others may write to it at any time.
    void abandon() noexcept {
        data_ = nullptr;
        bytes_ = 0;
    }

private:
    memory_source source_;
    std::byte* data_ = nullptr;
    index_t bytes_ = 0;
};

/// A dense tensor that owns its memory; its elements are not initialised. One that was moved from is
/// empty.
template <std::size_t Rank>
class tensor {
public:
    tensor() = default;
    explicit tensor(const std::array<index_t, Rank>& extents, dtype type = dtype::f32,
                    memory_source source = {})
        : view_{nullptr, checked(extents, type), dense_strides(extents), type, source.space} {
        storage_ = buffer(view_.bytes(), source);
        view_.data = storage_.data();
    }
    tensor(tensor&& other) noexcept
        : storage_(std::move(other.storage_)), view_(std::exchange(other.view_, {})) {}
    tensor& operator=(tensor&& other) noexcept {
        storage_ = std::move(other.storage_);
        view_ = std::exchange(other.view_, {});
        return *this;
    }

    [[nodiscard]] basic_view<std::byte, Rank> view() noexcept { return view_; }
    [[nodiscard]] basic_view<const std::byte, Rank> view() const noexcept { return view_; }
    [[nodiscard]] index_t bytes() const noexcept { return view_.bytes(); }

    /// The elements as a span. Errors: usage_error if T is not the element type.
    template <class T>
    [[nodiscard]] std::span<T> elements() {
        return {view_.template as<T>(), static_cast<std::size_t>(view_.elements())};
    }
    template <class T>
    [[nodiscard]] std::span<const T> elements() const {
        return {view_.template as<T>(), static_cast<std::size_t>(view_.elements())};
    }

private:
    static const std::array<index_t, Rank>& checked(const std::array<index_t, Rank>& extents,
                                                    dtype type) {
        index_t left = std::numeric_limits<index_t>::max() / size_of(type);
        for (const index_t extent : extents) {
            detail::require(extent >= 0, "a tensor extent of ", extent, " was asked for");
            // As strides count them, an empty tensor too.
            left /= std::max<index_t>(extent, 1);
            detail::require(left > 0,
                            "a tensor of more bytes than can be counted was asked for, by "
                            "an extent of ",
                            extent);
        }
        return extents;
    }

    buffer storage_;
    basic_view<std::byte, Rank> view_{};
};

/// A latent that owns its memory: [B, C, T, H, W].
using latent = tensor<5>;

/// Forwards to another resource and remembers how much is, and at most was, taken.
///
/// Safe to use from several threads if the upstream resource is.
class counting_resource final : public std::pmr::memory_resource {
public:
    explicit counting_resource(
        std::pmr::memory_resource* upstream = std::pmr::get_default_resource()) noexcept
        : upstream_(upstream) {}

    [[nodiscard]] index_t bytes_in_use() const noexcept { return in_use_; }
    [[nodiscard]] index_t peak_bytes() const noexcept { return peak_; }
    /// How often memory was taken: a steady state takes none.
    [[nodiscard]] index_t allocations() const noexcept { return allocations_; }
    void reset_peak() noexcept { peak_ = in_use_.load(); }

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        void* out = upstream_->allocate(bytes, alignment);
        const index_t now = in_use_ += static_cast<index_t>(bytes);
        index_t peak = peak_;
        while (peak < now && !peak_.compare_exchange_weak(peak, now)) {
        }
        ++allocations_;
        return out;
    }
    void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
        upstream_->deallocate(memory, bytes, alignment);
        in_use_ -= static_cast<index_t>(bytes);
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }

    std::pmr::memory_resource* upstream_;
    std::atomic<index_t> in_use_ = 0;
    std::atomic<index_t> peak_ = 0;
    std::atomic<index_t> allocations_ = 0;
};

}  // namespace latpar::inline v0
