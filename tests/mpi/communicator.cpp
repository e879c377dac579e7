// SPDX-License-Identifier: Apache-2.0
// The conformance suite on MPI, the ledger against an interposer, and what only MPI can get wrong.
#include <latpar/comm/metered.hpp>
#include <latpar/mpi/communicator.hpp>
#include <latpar/mpi/environment.hpp>

#include <comm/conformance.hpp>
#include <mpi/interposer.hpp>
#include <mpi/processes.hpp>

#include <thread>

using namespace latpar;

static_assert(communicator<mpi::communicator>);
static_assert(communicator<metered<mpi::communicator>>);

TEST_CASE("mpi::communicator conforms") {
    processes<mpi::communicator> harness{mpi::communicator::world()};
    conformance::run(harness);
}

TEST_CASE("metered MPI conforms, and its ledger is what an interposer counts") {
    processes<metered<mpi::communicator>> harness{metered(mpi::communicator::world())};
    const traffic before = interposed_traffic();
    conformance::run(harness);
    const auto verdicts = harness.run([](auto& comm) {
        std::vector<double> values{1.5, 2.5, comm.rank() * 0.5};
        all_reduce(comm, std::span(values), reduce_op::sum);
        broadcast(comm, values, comm.size() - 1);
        return std::string();
    });
    const traffic after = interposed_traffic();
    const traffic counted{after.bytes_sent - before.bytes_sent,
                          after.bytes_received - before.bytes_received,
                          after.messages_sent - before.messages_sent,
                          after.messages_received - before.messages_received};
    INFO(harness.comm.account());
    CHECK(harness.comm.account().total().bytes_sent == counted.bytes_sent);
    CHECK(harness.comm.account().total().bytes_received == counted.bytes_received);
    CHECK(harness.comm.account().total().messages_sent == counted.messages_sent);
    CHECK(harness.comm.account().total().messages_received == counted.messages_received);
    CHECK((counted.bytes_sent > 0) == (harness.comm.size() > 1));
    CHECK(unexpected_calls() == 0);
}

TEST_CASE("a message between processes may exceed 2^31 bytes") {
    processes<mpi::communicator> harness{mpi::communicator::world()};
    if (harness.comm.size() != 2) return;
    for (const std::string& verdict :
         harness.run([](auto& comm) { return conformance::beyond_two_gib(comm); })) {
        CHECK(verdict == "");
    }
}

TEST_CASE("the caller's communicator is duplicated, or taken over whole") {
    MPI_Comm own = MPI_COMM_NULL;
    MPI_Comm_dup(MPI_COMM_WORLD, &own);
    std::string wrong;
    {
        auto borrowed = mpi::communicator::borrow(own);
        wrong += conformance::complain(borrowed.payload_handle() != own, "not duplicated");
        wrong += conformance::every_pair(borrowed);
    }
    // Still the caller's, and still usable.
    int size = 0;
    wrong += conformance::complain(MPI_Comm_size(own, &size) == MPI_SUCCESS, "freed");
    {
        auto adopted = mpi::communicator::adopt(own);
        wrong += conformance::complain(adopted.payload_handle() == own, "not taken over");
        wrong += conformance::complain(adopted.control_handle() != own, "not kept apart");
        wrong += conformance::every_pair(adopted);
    }
    CHECK(wrong == "");
    CHECK_THROWS_AS(mpi::communicator::borrow(MPI_COMM_NULL), usage_error);
    CHECK_THROWS_AS(mpi::communicator::adopt(MPI_COMM_WORLD), usage_error);
}

TEST_CASE("a second environment adopts the first") {
    { const mpi::environment second; }
    int finalized = 1;
    MPI_Finalized(&finalized);
    CHECK(finalized == 0);
}

TEST_CASE("a second thread is told which thread level it needs") {
    int provided = 0;
    MPI_Query_thread(&provided);
    if (provided >= MPI_THREAD_SERIALIZED) return;
    auto comm = mpi::communicator::world();
    std::string text;
    std::thread([&] {
        text =
            conformance::message_of<usage_error>([&] { conformance::start(comm, {}, {}).wait(); });
    }).join();
    CHECK_THAT(text, ContainsSubstring("thread_level::multiple"));
}
