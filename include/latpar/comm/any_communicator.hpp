// SPDX-License-Identifier: Apache-2.0
// A communicator of any kind behind one type.
#pragma once

#include <latpar/comm/background.hpp>
#include <latpar/comm/communicator.hpp>
#include <latpar/comm/direct.hpp>

#include <cstddef>
#include <memory>
#include <new>
#include <utility>

namespace latpar::inline v0 {

/// An exchange in flight of any communicator; small ones are held in place, without the heap.
class any_request {
public:
    template <class R>
    requires(!std::same_as<R, any_request> && exchange_request<R>)
        // NOLINTNEXTLINE(google-explicit-constructor): a request is a request.
        any_request(R request)
        : table_(&table_of<R>) {
        if constexpr (in_place<R>) {
            ::new (static_cast<void*>(storage_)) R(std::move(request));
        } else {
            ::new (static_cast<void*>(storage_)) R*(new R(std::move(request)));
        }
    }
    any_request(any_request&& other) noexcept : table_(other.table_) {
        table_->move(other.storage_, storage_);
    }
    any_request& operator=(any_request&& other) noexcept {
        if (this != &other) {
            table_->destroy(storage_);
            table_ = other.table_;
            table_->move(other.storage_, storage_);
        }
        return *this;
    }
    ~any_request() { table_->destroy(storage_); }

    [[nodiscard]] bool test() { return table_->test(storage_); }
    void wait() { table_->wait(storage_); }
    [[nodiscard]] bool wait_until(deadline when) { return table_->wait_until(storage_, when); }

private:
    struct operations {
        void (*move)(std::byte* from, std::byte* to) noexcept;
        void (*destroy)(std::byte* storage) noexcept;
        bool (*test)(std::byte* storage);
        void (*wait)(std::byte* storage);
        bool (*wait_until)(std::byte* storage, deadline when);
    };

    static constexpr std::size_t capacity = 64;

    template <class R>
    static constexpr bool in_place =
        sizeof(R) <= capacity &&
        alignof(R) <= alignof(std::max_align_t) && std::is_nothrow_move_constructible_v<R>;

    template <class R>
    static R& held(std::byte* storage) noexcept {
        if constexpr (in_place<R>) {
            return *std::launder(reinterpret_cast<R*>(storage));
        } else {
            return **std::launder(reinterpret_cast<R**>(storage));
        }
    }

    // The moved-from request stays in `from`: its owner destroys it as any other.
    template <class R>
    static constexpr operations table_of{
        [](std::byte* from, std::byte* to) noexcept {
            if constexpr (in_place<R>) {
                ::new (static_cast<void*>(to)) R(std::move(held<R>(from)));
            } else {
                R** const pointer = std::launder(reinterpret_cast<R**>(from));
                ::new (static_cast<void*>(to)) R*(std::exchange(*pointer, nullptr));
            }
        },
        [](std::byte* storage) noexcept {
            if constexpr (in_place<R>) {
                held<R>(storage).~R();
            } else {
                delete *std::launder(reinterpret_cast<R**>(storage));
            }
        },
        [](std::byte* storage) { return held<R>(storage).test(); },
        [](std::byte* storage) { held<R>(storage).wait(); },
        [](std::byte* storage, deadline when) { return held<R>(storage).wait_until(when); }};

    alignas(std::max_align_t) std::byte storage_[capacity];
    const operations* table_;
};

/// Owns a communicator of any kind.
///
/// For the boundary of an engine that chooses its backend at run time, or that does not want to be
/// a template. Move-only; itself a communicator.
class any_communicator {
public:
    template <class C>
    requires(!std::same_as<C, any_communicator> && communicator<C>)
        // NOLINTNEXTLINE(google-explicit-constructor): a communicator is a communicator.
        any_communicator(C comm)
        : held_(std::make_unique<holder<C>>(std::move(comm))) {}

    [[nodiscard]] int rank() const { return held_->rank(); }
    [[nodiscard]] int size() const { return held_->size(); }
    [[nodiscard]] bool reaches(memory_space space) const { return held_->reaches(space); }
    [[nodiscard]] any_request start_exchange(std::span<const send_op> sends,
                                             std::span<const recv_op> recvs,
                                             stream_ref stream = {}) {
        return held_->start_exchange(sends, recvs, stream);
    }
    [[nodiscard]] std::optional<any_communicator> split(int color, int key) {
        std::unique_ptr<interface> part = held_->split(color, key);
        if (!part) return std::nullopt;
        return any_communicator(std::move(part));
    }
    [[nodiscard]] any_communicator duplicate() { return any_communicator(held_->duplicate()); }
    [[nodiscard]] any_communicator background() { return any_communicator(held_->background()); }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return held_->control_all_gather(text);
    }
    void abort(std::string_view reason) { held_->abort(reason); }

    /// See direct_communicator; of one that is none, nobody reaches anything.
    [[nodiscard]] peer_memory share(std::byte* memory, index_t bytes, memory_space space) {
        return held_->share(memory, bytes, space);
    }
    void meet(stream_ref stream = {}) { held_->meet(stream); }
    void note(std::span<const send_op> sends, std::span<const recv_op> recvs) {
        held_->note(sends, recvs);
    }

private:
    struct interface {
        virtual ~interface() = default;
        [[nodiscard]] virtual int rank() const = 0;
        [[nodiscard]] virtual int size() const = 0;
        [[nodiscard]] virtual bool reaches(memory_space space) const = 0;
        virtual any_request start_exchange(std::span<const send_op> sends,
                                           std::span<const recv_op> recvs, stream_ref stream) = 0;
        virtual std::unique_ptr<interface> split(int color, int key) = 0;
        virtual std::unique_ptr<interface> duplicate() = 0;
        virtual std::unique_ptr<interface> background() = 0;
        virtual std::vector<std::string> control_all_gather(std::string_view text) = 0;
        virtual void abort(std::string_view reason) = 0;
        virtual peer_memory share(std::byte* memory, index_t bytes, memory_space space) = 0;
        virtual void meet(stream_ref stream) = 0;
        virtual void note(std::span<const send_op> sends, std::span<const recv_op> recvs) = 0;
    };

    template <class C>
    struct holder final : interface {
        explicit holder(C&& inner) : comm(std::move(inner)) {}
        [[nodiscard]] int rank() const override { return comm.rank(); }
        [[nodiscard]] int size() const override { return comm.size(); }
        [[nodiscard]] bool reaches(memory_space space) const override {
            return comm.reaches(space);
        }
        any_request start_exchange(std::span<const send_op> sends, std::span<const recv_op> recvs,
                                   stream_ref stream) override {
            return comm.start_exchange(sends, recvs, stream);
        }
        std::unique_ptr<interface> split(int color, int key) override {
            std::optional<C> part = comm.split(color, key);
            if (!part) return nullptr;
            return std::make_unique<holder>(std::move(*part));
        }
        std::unique_ptr<interface> duplicate() override {
            return std::make_unique<holder>(comm.duplicate());
        }
        std::unique_ptr<interface> background() override {
            return std::make_unique<holder>(latpar::background(comm));
        }
        std::vector<std::string> control_all_gather(std::string_view text) override {
            return comm.control_all_gather(text);
        }
        void abort(std::string_view reason) override { comm.abort(reason); }
        peer_memory share(std::byte* memory, index_t bytes, memory_space space) override {
            if constexpr (direct_communicator<C>) {
                return comm.share(memory, bytes, space);
            } else {
                return {};
            }
        }
        void meet(stream_ref stream) override {
            if constexpr (direct_communicator<C>) comm.meet(stream);
        }
        void note(std::span<const send_op> sends, std::span<const recv_op> recvs) override {
            if constexpr (direct_communicator<C>) comm.note(sends, recvs);
        }

        C comm;
    };

    explicit any_communicator(std::unique_ptr<interface> held) : held_(std::move(held)) {}

    std::unique_ptr<interface> held_;
};

static_assert(direct_communicator<any_communicator>);

}  // namespace latpar::inline v0
