// SPDX-License-Identifier: Apache-2.0
// The conformance suite on the communicators of one process.
#include <latpar/comm/any_communicator.hpp>
#include <latpar/comm/detail/check_operations.hpp>
#include <latpar/comm/metered.hpp>
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>

#include <comm/conformance.hpp>
#include <comm/threads.hpp>
#include <support/direct_threads.hpp>

using namespace latpar;

static_assert(communicator<self_communicator>);
static_assert(communicator<thread_communicator>);
static_assert(communicator<any_communicator>);
static_assert(communicator<metered<thread_communicator>>);
static_assert(communicator<metered<any_communicator>>);

namespace {

struct alone {
    template <class F>
    std::vector<std::string> run(F f) {
        self_communicator comm;
        return {f(comm)};
    }
};

}  // namespace

TEST_CASE("self conforms") {
    alone harness;
    conformance::run(harness);
}

TEST_CASE("a wait of self for what it has not started is refused") {
    self_communicator comm;
    conformance::bytes in(3);
    CHECK_THROWS_AS(conformance::start(comm, {}, {conformance::from(0, in)}).wait(), comm_error);
    auto request = conformance::start(comm, {}, {conformance::from(0, in)});
    CHECK_FALSE(request.test());
}

TEST_CASE("thread_team conforms") {
    const int ranks = GENERATE(1, 2, 3, 4, 7);
    threads harness{thread_team(ranks), [](thread_communicator comm) { return comm; }};
    conformance::run(harness);
}

TEST_CASE("thread ranks that write to each other's memory conform, behind any type too") {
    const int ranks = GENERATE(1, 2, 3);
    conformance::strengths can;
    can.reaches_peers = true;
    threads direct{thread_team(ranks),
                   [](thread_communicator comm) { return direct_threads(std::move(comm)); }};
    conformance::run(direct, can);
    threads any{thread_team(ranks), [](thread_communicator comm) {
                    return metered(any_communicator(direct_threads(std::move(comm))));
                }};
    conformance::run(any, can);
}

TEST_CASE("a target that one side alone names, or two of an exchange, are refused") {
    const auto texts = threads{
        thread_team(2), [](thread_communicator comm) {
            return direct_threads(std::move(comm));
        }}.run([](direct_threads& comm) {
        conformance::bytes mine(8);
        const peer_memory peers =
            comm.share(reinterpret_cast<std::byte*>(mine.data()), 8, memory_space::host);
        const conformance::bytes out(8, 3);
        const int peer = 1 - comm.rank();
        std::string said;
        for (const std::size_t shift : {0, 1}) {
            send_op send = conformance::to(peer, out);
            recv_op recv = conformance::from(peer, mine);
            send.count = recv.count = 4;
            send.target = peers.of[static_cast<std::size_t>(peer)] + shift;
            recv.is_target = shift > 0;
            said += conformance::message_of<comm_error>(
                [&] { exchange(comm, std::array{send}, std::array{recv}); });
        }
        // On device memory, which these ranks do not reach.
        const auto refusal_of = [](std::span<const send_op> sends, std::span<const recv_op> recvs) {
            return conformance::message_of<usage_error>([&] {
                latpar::detail::check_operations(2, sends, recvs,
                                                 [](memory_space) { return true; });
            });
        };
        send_op to_self = conformance::to(comm.rank(), out);
        send_op to_peer = conformance::to(peer, out);
        recv_op back = conformance::from(peer, mine);
        to_self.target = to_peer.target = mine.data();
        to_self.space = to_peer.space = back.space = memory_space::cuda;
        said += refusal_of(std::array{to_self, to_peer}, {});
        said += refusal_of(std::array{to_peer}, std::array{back});
        return said;
    });
    for (const std::string& text : texts) {
        CHECK_THAT(text, ContainsSubstring("with a target to rank"));
        CHECK_THAT(text, ContainsSubstring("expected it without one, or elsewhere"));
        CHECK_THAT(text, ContainsSubstring("expected it with one, or elsewhere"));
        CHECK_THAT(text, ContainsSubstring("an exchange has targets on ranks"));
        CHECK_THAT(text, ContainsSubstring("with a target and without; start them apart"));
    }
}

TEST_CASE("metered conforms, and each byte that is sent is received") {
    const int ranks = GENERATE(1, 2, 3, 4, 7);
    const auto account = std::make_shared<ledger>();
    threads harness{thread_team(ranks),
                    [&](thread_communicator comm) { return metered(std::move(comm), account); }};
    conformance::run(harness);
    if (ranks == 1) CHECK(account->total() == traffic{});
    account->reset();
    harness.run([](auto& comm) {
        static_cast<void>(conformance::uneven_sizes(comm));
        return conformance::splits(comm);
    });
    CHECK(account->total().bytes_sent == account->total().bytes_received);
    CHECK(account->total().messages_sent == account->total().messages_received);
    CHECK((account->total().bytes_sent > 0) == (ranks > 1));
}

TEST_CASE("any_communicator conforms") {
    const int ranks = GENERATE(1, 2, 3, 4, 7);
    threads harness{thread_team(ranks),
                    [](thread_communicator comm) { return any_communicator(std::move(comm)); }};
    conformance::run(harness);
}

TEST_CASE("a message between threads may exceed 2^31 bytes") {
    if (is_sanitized()) return;
    threads harness{thread_team(2), [](thread_communicator comm) { return comm; }};
    for (const std::string& verdict :
         harness.run([](auto& comm) { return conformance::beyond_two_gib(comm); })) {
        CHECK(verdict == "");
    }
}
