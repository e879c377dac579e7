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

TEST_CASE("who waits for a rank that has returned is told so, whatever it waits with") {
    const auto told = [](auto wait) {
        try {
            thread_team(2).run([&](thread_communicator& comm) {
                if (comm.rank() == 0) wait(comm);
            });
        } catch (const comm_error& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    const std::string expected =
        "rank 0 waits for rank 1 of 2, which has returned or given its communicator up; every rank "
        "must make the same calls";
    float value = 0;
    const std::array<recv_op, 1> recvs{recv_op{&value, 1, dtype::f32, 1}};
    const std::array<send_op, 1> sends{send_op{&value, 1, dtype::f32, 1}};
    CHECK(told([](auto& comm) { barrier(comm); }) == expected);
    CHECK(told([&](auto& comm) { exchange(comm, {}, recvs); }) == expected);
    CHECK(told([&](auto& comm) { exchange(comm, sends, {}); }) == expected);
    // A duplicate is made without the others; nobody will come to this one.
    CHECK(told([&](auto& comm) {
              auto other = comm.duplicate();
              exchange(other, {}, recvs);
          }) == expected);
    CHECK(told([&](auto& comm) {
              auto request = comm.start_exchange({}, recvs, {});
              while (!request.test()) {
              }
          }) == expected);
    CHECK(told([&](auto& comm) {
              auto other = comm.duplicate();
              auto third = other.duplicate();
              exchange(third, {}, recvs);
          }) == expected);
    CHECK(told([](auto& comm) {
              // However often it tries.
              for (int i = 0; i < 3; ++i) {
                  try {
                      barrier(comm);
                      return;
                  } catch (const comm_error&) {
                  }
              }
              barrier(comm);
          }) == expected);
    CHECK_THAT(told([](auto& comm) { static_cast<void>(comm.split(0, 0)); }),
               ContainsSubstring("has returned"));
}

TEST_CASE("who waits for a rank that returned behind an exception that it has caught is told so") {
    const bool is_part = GENERATE(false, true);
    CAPTURE(is_part);
    const auto run = [&] {
        thread_team(3).run([&](thread_communicator& comm) {
            // In the part, the ranks are the other way round.
            const auto make = [&] {
                return is_part ? *comm.split(0, -comm.rank()) : comm.duplicate();
            };
            if (comm.rank() == 1) {
                try {
                    auto other = make();
                    auto third = other.duplicate();
                    throw std::runtime_error("caught");
                } catch (const std::runtime_error&) {
                }
                return;
            }
            auto other = make();
            auto third = other.duplicate();
            barrier(third);
        });
    };
    CHECK_THROWS_WITH(run(), ContainsSubstring("waits for rank 1 of 3, which has returned"));
}

TEST_CASE("a rank may return while others still use what it has sent") {
    std::array<float, 3> values{};
    thread_team(3).run([&](thread_communicator& comm) {
        const auto rank = static_cast<std::size_t>(comm.rank());
        auto other = comm.duplicate();
        values[rank] = all_reduce(other, 1.0f + float(rank), reduce_op::sum);
        if (comm.rank() == 1) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        auto part = comm.rank() == 0 ? 2 : 0;
        float got = 0;
        exchange(other, std::array{send_op{&values[rank], 1, dtype::f32, part}},
                 std::array{recv_op{&got, 1, dtype::f32, part}});
        values[rank] = got;
    });
    CHECK(values == std::array{6.0f, 6.0f, 6.0f});
}

TEST_CASE("a communicator that outlives the run of its team serves on") {
    std::array<std::optional<thread_communicator>, 2> kept;
    thread_team(2).run([&](thread_communicator& comm) {
        kept[static_cast<std::size_t>(comm.rank())] = comm.duplicate();
    });
    std::array<int, 2> sums{};
    const auto use = [&](std::size_t rank) {
        sums[rank] = all_reduce(*kept[rank], static_cast<int>(rank) + 1, reduce_op::sum);
    };
    {
        const std::jthread second([&] { use(1); });
        use(0);
    }
    CHECK(sums == std::array{3, 3});
}

TEST_CASE(
    "an exception that destroys the communicator of an engine's own thread reaches the others") {
    const thread_team team(2);
    std::string heard;
    {
        const std::jthread second([&] {
            try {
                thread_communicator comm = team.communicator(1);
                throw std::runtime_error("weights not found");
            } catch (const std::runtime_error&) {
            }
        });
        thread_communicator comm = team.communicator(0);
        try {
            barrier(comm);
        } catch (const comm_error& error) {
            heard = error.what();
        }
    }
    CHECK(heard == "aborted by rank 1 of 2: an exception has destroyed its communicator");
}
