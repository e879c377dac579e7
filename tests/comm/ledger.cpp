// SPDX-License-Identifier: Apache-2.0
// What a ledger counts, and what metered enters into it.
#include <latpar/comm/collectives.hpp>
#include <latpar/comm/ledger.hpp>
#include <latpar/comm/metered.hpp>
#include <latpar/comm/thread_team.hpp>

#include <support/catch.hpp>

#include <thread>

using namespace latpar;

TEST_CASE("a ledger counts in total and per peer, prints and resets") {
    ledger account;
    account.count_sent(3, 10);
    account.count_sent(1, 0);
    account.count_received(3, 7);
    account.count_control(5);
    CHECK(account.total() == traffic{10, 7, 2, 1});
    CHECK(account.with(3) == traffic{10, 7, 1, 1});
    CHECK(account.with(1) == traffic{0, 0, 1, 0});
    CHECK(account.with(2) == traffic{});
    CHECK(account.control_bytes() == 5);
    CHECK(to_string(account) ==
          "sent 10 bytes in 2 messages, received 7 bytes in 1; 5 control bytes sent\n"
          "  rank 1: sent 0 bytes in 1 messages, received 0 bytes in 0\n"
          "  rank 3: sent 10 bytes in 1 messages, received 7 bytes in 1");
    account.reset();
    CHECK(account.total() == traffic{});
    CHECK(account.with(3) == traffic{});
    CHECK(to_string(account) ==
          "sent 0 bytes in 0 messages, received 0 bytes in 0; 0 control bytes sent");
}

TEST_CASE("a ledger may be written from several threads") {
    ledger account;
    {
        std::vector<std::jthread> threads;
        for (int t = 0; t < 4; ++t) {
            threads.emplace_back([&account, t] {
                for (int i = 0; i < 1000; ++i) account.count_sent(t % 2, 3);
            });
        }
    }
    CHECK(account.total() == traffic{12000, 0, 4000, 0});
    CHECK(account.with(1) == traffic{6000, 0, 2000, 0});
}

TEST_CASE("metered counts messages to others, under the ranks of the first communicator") {
    std::array<traffic, 4> totals;
    std::array<traffic, 4> with_two_on;
    std::array<index_t, 4> control{};
    bool apart = true;
    thread_team(4).run([&](thread_communicator& inner) {
        metered comm(std::move(inner));
        const auto rank = static_cast<std::size_t>(comm.rank());
        // Parts in reverse order: rank 0 there is rank 2 or 3 here.
        auto part = comm.split(comm.rank() % 2, -comm.rank());
        auto twin = part->duplicate();
        comm.account().reset();
        std::vector<float> values(6);
        broadcast(twin, values, 0);
        // Three messages of 20 bytes each way, and one to itself that does not count.
        std::vector<float> all(20);
        all_gather(comm, std::span(values).first(5), all);
        static_cast<void>(part->control_all_gather("seven b"));
        totals[rank] = comm.account().total();
        with_two_on[rank] = comm.account().with((comm.rank() + 2) % 4);
        control[rank] = comm.account().control_bytes();
        // A ledger of its own.
        metered own(std::move(part->inner()));
        broadcast(own, values, 0);
        if (comm.rank() == 3) {
            apart = comm.account().total() == totals[3] &&
                    own.account().total() == traffic{24, 0, 1, 0};
        }
    });
    for (std::size_t rank = 0; rank < 4; ++rank) {
        INFO(rank);
        const bool root = rank >= 2;
        CHECK(totals[rank] == (root ? traffic{84, 60, 4, 3} : traffic{60, 84, 3, 4}));
        CHECK(with_two_on[rank] == (root ? traffic{44, 20, 2, 1} : traffic{20, 44, 1, 2}));
        CHECK(control[rank] == 7);
    }
    CHECK(apart);
}
