// SPDX-License-Identifier: Apache-2.0
// Words of host memory at which streams wait.
#include <latpar/comm/thread_team.hpp>
#include <latpar/core/error.hpp>
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/stream.hpp>

#include <cuda_runtime_api.h>
#include <nccl/gates.hpp>
#include <support/catch.hpp>
#include <support/expect.hpp>

#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <thread>

using namespace latpar;
using nccl::detail::gates;
using nccl::detail::shared_words;
using news = gates::news;

namespace {

cudaStream_t native(const cuda::stream& stream) {
    return static_cast<cudaStream_t>(stream.ref().handle);
}

bool is_done(const cuda::stream& stream) {
    return cudaStreamQuery(native(stream)) == cudaSuccess;
}

void let_pass(std::chrono::milliseconds time) {
    std::this_thread::sleep_for(time);
}

/// The words of a team's first rank, on each rank.
std::shared_ptr<shared_words> words_of(thread_communicator& comm) {
    const std::size_t count = gates::words_of(comm.size());
    std::shared_ptr<shared_words> words;
    if (comm.rank() == 0) words = std::make_shared<shared_words>(count);
    const auto names = comm.control_all_gather(words ? words->name() : "");
    if (!words) words = std::make_shared<shared_words>(names.front(), count);
    static_cast<void>(comm.control_all_gather({}));
    words->unname();
    return words;
}

}  // namespace

TEST_CASE("a stream waits for news of a peer, each for its own") {
    thread_team(2).run([](thread_communicator& comm) {
        cuda::set_device(comm.rank());
        const int peer = 1 - comm.rank();
        const cuda::stream telling;
        const cuda::stream waiting;
        gates all(words_of(comm), comm.rank(), comm.size(), native(waiting));
        const auto meet = [&] { static_cast<void>(comm.control_all_gather({})); };
        for (const news what : {news::written, news::sending, news::receiving}) {
            for (int round = 0; round < 3; ++round) {
                all.await(what, peer, native(waiting));
                all.count(what, peer, 2);
                let_pass(std::chrono::milliseconds(5));
                EXPECT(!is_done(waiting));
                meet();
                // Other news is none of this.
                if (what == news::written) all.tell(news::sending, peer, 1, native(telling));
                if (what == news::written) all.count(news::sending, peer, 1);
                cuda::synchronize(telling);
                meet();
                let_pass(std::chrono::milliseconds(5));
                EXPECT(!is_done(waiting));
                meet();
                // Two messages at once serve the first, and the next waits for a third.
                all.tell(what, peer, 2, native(telling));
                cuda::synchronize(waiting);
                cuda::synchronize(telling);
                meet();
            }
        }
    });
}

TEST_CASE("the host lets through what waits, though it takes all queues of the device") {
    cuda::set_device(0);
    std::deque<cuda::stream> streams(40);
    gates all(std::make_shared<shared_words>(gates::words_of(2)), 0, 2, native(streams.front()));
    for (const cuda::stream& stream : streams) {
        for (const news what : {news::sending, news::receiving, news::written}) {
            all.await(what, 1, native(stream));
        }
    }
    let_pass(std::chrono::milliseconds(20));
    for (const cuda::stream& stream : streams) CHECK(!is_done(stream));
    all.open();
    for (const cuda::stream& stream : streams) cuda::synchronize(stream);
}

TEST_CASE("words go by a name as long as it is kept") {
    cuda::set_device(0);
    shared_words first(10);
    shared_words second(10);
    CHECK(first.name() != second.name());
    const shared_words again(first.name(), 10);
    first.data()[3] = 5;
    CHECK(again.data()[3] == 5);
    CHECK(second.data()[3] == 0);
    first.unname();
    expect_throws([&] { static_cast<void>(shared_words(first.name(), 10)); },
                  "sharing 40 bytes of host memory as " + first.name());
    first.data()[4] = 6;
    CHECK(again.data()[4] == 6);
    std::string name;
    {
        const shared_words brief(10);
        name = brief.name();
    }
    CHECK_THROWS_AS(shared_words(name, 10), device_error);
}
