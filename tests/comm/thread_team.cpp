// SPDX-License-Identifier: Apache-2.0
// Running a team, its failures, agreement texts and the mesh on top of it.
#include <latpar/comm/agreement.hpp>
#include <latpar/comm/collectives.hpp>
#include <latpar/comm/mesh.hpp>
#include <latpar/comm/thread_team.hpp>

#include <support/catch.hpp>

#include <chrono>
#include <stdexcept>
#include <thread>

using namespace latpar;

TEST_CASE("run calls every rank once, rank 0 on the calling thread") {
    const thread_team team(5);
    CHECK(team.size() == 5);
    std::array<int, 5> calls{};
    std::array<std::thread::id, 5> threads;
    thread_team(5).run([&](thread_communicator& comm) {
        ++calls[static_cast<std::size_t>(comm.rank())];
        threads[static_cast<std::size_t>(comm.rank())] = std::this_thread::get_id();
    });
    CHECK(calls == std::array{1, 1, 1, 1, 1});
    CHECK(threads[0] == std::this_thread::get_id());
    CHECK(threads[1] != threads[0]);
    CHECK_THROWS_AS(thread_team(0), usage_error);
    CHECK_THROWS_AS(team.communicator(5), usage_error);
    CHECK_THROWS_AS(team.communicator(-1), usage_error);
}

TEST_CASE("a rank that throws makes the others throw with its message; run gives the original") {
    const int guilty = GENERATE(0, 2);
    thread_team team(4);
    std::array<std::string, 4> heard;
    const auto run = [&] {
        team.run([&](thread_communicator& comm) {
            float value = 0;
            try {
                auto part = comm.split(comm.rank() / 2, 0);
                if (comm.rank() == guilty) throw std::out_of_range("no layer 41");
                // One waits at a barrier, one for payload, the others for payload in a part.
                if (comm.rank() == 1) barrier(comm);
                exchange(comm.rank() == 3 ? comm : *part, {},
                         std::array{recv_op{&value, 1, dtype::f32, comm.rank() == 3 ? 0 : 1}});
            } catch (const comm_error& error) {
                heard[static_cast<std::size_t>(comm.rank())] = error.what();
                throw;
            }
        });
    };
    CHECK_THROWS_AS(run(), std::out_of_range);
    for (int rank = 0; rank < 4; ++rank) {
        if (rank == guilty) continue;
        INFO(rank);
        CHECK_THAT(heard[static_cast<std::size_t>(rank)],
                   ContainsSubstring("no layer 41") &&
                       ContainsSubstring("rank " + std::to_string(guilty)));
    }
    // The team itself is as good as new.
    std::array<int, 4> sums{};
    team.run([&](thread_communicator& comm) {
        sums[static_cast<std::size_t>(comm.rank())] = all_reduce(comm, comm.rank(), reduce_op::sum);
    });
    CHECK(sums == std::array{6, 6, 6, 6});
}

TEST_CASE("an engine's own threads take the ranks of a team") {
    const thread_team team(3);
    std::array<int, 3> sums{};
    {
        std::vector<std::jthread> threads;
        for (int rank = 0; rank < 3; ++rank) {
            threads.emplace_back([&, rank] {
                thread_communicator comm = team.communicator(rank);
                sums[static_cast<std::size_t>(rank)] = all_reduce(comm, rank + 1, reduce_op::sum);
            });
        }
    }
    CHECK(sums == std::array{6, 6, 6});
}

TEST_CASE("after an exception passed an unfinished exchange, the communicator refuses work") {
    std::array<std::string, 2> heard;
    thread_team(2).run([&](thread_communicator& comm) {
        auto other = comm.duplicate();
        float value = 0;
        try {
            if (comm.rank() == 0) {
                try {
                    auto never =
                        other.start_exchange({}, std::array{recv_op{&value, 1, dtype::f32, 1}}, {});
                    throw std::runtime_error("swallowed");
                } catch (const std::runtime_error&) {
                }
            }
            barrier(other);
        } catch (const comm_error& error) {
            heard[static_cast<std::size_t>(comm.rank())] = error.what();
        }
        barrier(comm);
    });
    CHECK_THAT(heard[0], ContainsSubstring("left unfinished"));
    CHECK_THAT(heard[1], ContainsSubstring("rank 0"));
}

TEST_CASE("disagreement and errors have one text on all ranks") {
    std::array<std::string, 4> disagreement;
    std::array<std::string, 4> refusal;
    thread_team(4).run([&](thread_communicator& comm) {
        const auto rank = static_cast<std::size_t>(comm.rank());
        try {
            agree_on(comm, "the number of steps", rank == 2 ? 50 : 20);
        } catch (const usage_error& error) {
            disagreement[rank] = error.what();
        }
        try {
            agree_no_error(comm, rank == 0   ? std::nullopt
                                 : rank == 3 ? std::optional<std::string>("overlap is -1")
                                             : std::optional<std::string>("K is 0"));
        } catch (const usage_error& error) {
            refusal[rank] = error.what();
        }
        agree_on(comm, "the number of steps", 20);
        agree_no_error(comm, std::nullopt);
    });
    for (std::size_t rank = 0; rank < 4; ++rank) {
        CHECK(disagreement[rank] ==
              "the ranks disagree on the number of steps: ranks 0, 1, 3: 20; rank 2: 50; every "
              "rank must pass the same");
        CHECK(refusal[rank] == "ranks 1, 2: K is 0; rank 3: overlap is -1");
    }
}

TEST_CASE("a mesh hands out the communicators of its axes") {
    std::array<std::string, 8> seen;
    std::array<std::string, 8> refused;
    thread_team(8).run([&](thread_communicator& world) {
        mesh places(world, {{"latent", 2}, {"step", 2}, {"ulysses", 2}});
        const auto rank = static_cast<std::size_t>(world.rank());
        std::vector<int> peers(2);
        std::string text;
        for (const char* axis : {"step", "latent", "ulysses"}) {
            all_gather(places.axis(axis), std::array{world.rank()}, peers);
            text += detail::concat(peers[0], peers[1], ' ');
            if (places.axis(axis).rank() != places.coordinate(axis)) text += "wrong coordinate";
        }
        text += detail::concat(places.axis("ring").size(), places.degree("ring"), ' ',
                               to_string(places));
        seen[rank] = text;
        try {
            mesh(world, {{"latent", 3}});
        } catch (const usage_error& error) {
            refused[rank] = error.what();
        }
        try {
            mesh(world, {{rank == 1 ? "ring" : "latent", 8}});
        } catch (const usage_error& error) {
            refused[rank] += error.what();
        }
    });
    CHECK(seen[0] == "04 02 01 11 step=2,latent=2,ulysses=2");
    CHECK(seen[7] == "37 57 67 11 step=2,latent=2,ulysses=2");
    CHECK(seen[2] == "26 02 23 11 step=2,latent=2,ulysses=2");
    for (const std::string& text : refused) {
        CHECK(text == refused[0]);
        CHECK_THAT(text, ContainsSubstring("latent=8") && ContainsSubstring("rank 1: ring=8"));
    }
}

TEST_CASE("run rethrows what was thrown, though the others hear of it while it unwinds") {
    struct slow {
        slow() = default;
        slow(const slow&) = delete;
        slow& operator=(const slow&) = delete;
        ~slow() { std::this_thread::sleep_for(std::chrono::milliseconds(50)); }
    };
    thread_team team(3);
    CHECK_THROWS_WITH(team.run([](thread_communicator& comm) {
        if (comm.rank() == 1) {
            const slow unwinding;
            guarded(comm, [] { throw std::runtime_error("no memory left"); });
        }
        barrier(comm);
    }),
                      "no memory left");
}
