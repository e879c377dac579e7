// SPDX-License-Identifier: Apache-2.0
// Tests of core/memory.hpp: ownership, alignment and the counting resource.
#include <latpar/core/latent_block.hpp>
#include <latpar/core/memory.hpp>

#include <support/catch.hpp>

#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

using namespace latpar;

TEST_CASE("a buffer takes aligned memory from its resource and gives it back") {
    counting_resource resource;
    {
        const buffer taken(100, {&resource, memory_space::host});
        CHECK(taken.bytes() == 100);
        CHECK(taken.space() == memory_space::host);
        CHECK(reinterpret_cast<std::uintptr_t>(taken.data()) % buffer::alignment == 0);
        std::memset(taken.data(), 7, 100);
        CHECK(resource.bytes_in_use() == 100);
        CHECK(resource.allocations() == 1);
    }
    CHECK(resource.bytes_in_use() == 0);
    CHECK(resource.peak_bytes() == 100);
}

TEST_CASE("an empty buffer takes nothing") {
    counting_resource resource;
    const buffer nothing(0, {&resource, memory_space::host});
    CHECK(nothing.data() == nullptr);
    CHECK(nothing.bytes() == 0);
    CHECK(buffer{}.data() == nullptr);
    CHECK(resource.allocations() == 0);
}

TEST_CASE("what a buffer gives up is not given back") {
    std::pmr::monotonic_buffer_resource all;
    counting_resource resource(&all);
    {
        buffer kept(100, {&resource, memory_space::host});
        kept.abandon();
        CHECK(kept.data() == nullptr);
        CHECK(kept.bytes() == 0);
    }
    CHECK(resource.bytes_in_use() == 100);
}

TEST_CASE("a buffer remembers the space that its resource hands out") {
    counting_resource resource;
    CHECK(buffer(8, {&resource, memory_space::cuda}).space() == memory_space::cuda);
}

TEST_CASE("a negative size is refused") {
    CHECK_THROWS_AS(buffer(-1), usage_error);
    CHECK_THROWS_WITH(buffer(-5), "a buffer of -5 bytes was asked for");
}

TEST_CASE("a moved buffer is owned once") {
    counting_resource first_resource;
    counting_resource second_resource;
    {
        buffer first(16, {&first_resource, memory_space::host});
        std::byte* const address = first.data();
        buffer second(std::move(first));
        CHECK(second.data() == address);
        CHECK(second.bytes() == 16);

        buffer third(32, {&second_resource, memory_space::host});
        third = std::move(second);
        CHECK(third.data() == address);
        CHECK(third.bytes() == 16);
    }
    CHECK(first_resource.bytes_in_use() == 0);
    CHECK(second_resource.bytes_in_use() == 0);
}

TEST_CASE("a tensor is a dense view of its own memory") {
    counting_resource resource;
    latent z({1, 2, 3, 4, 5}, dtype::f32, {&resource, memory_space::host});
    CHECK(z.bytes() == 480);
    CHECK(resource.bytes_in_use() == 480);
    CHECK(z.view().is_contiguous());
    CHECK(z.view().extents == std::array<index_t, 5>{1, 2, 3, 4, 5});
    auto elements = z.elements<float>();
    REQUIRE(elements.size() == 120);
    elements[119] = 3.0f;

    const latent& fixed = z;
    static_assert(std::is_same_v<decltype(fixed.view()), const_latent_view>);
    CHECK(fixed.elements<float>()[119] == 3.0f);
    CHECK(fixed.view().as<float>()[fixed.view().offset({0, 1, 2, 3, 4})] == 3.0f);

    const latent moved = std::move(z);
    CHECK(moved.elements<float>()[119] == 3.0f);
    CHECK(resource.allocations() == 1);
}

TEST_CASE("what was moved from is empty, and what was moved to owns its memory alone") {
    counting_resource resource;
    const memory_source source{&resource, memory_space::host};
    latent mine({1, 1, 2, 3, 4}, dtype::f32, source);
    latent video({1, 1, 1, 1, 1}, dtype::f32, source);
    for (int again = 0; again < 2; ++again) {
        std::byte* const address = mine.view().data;
        video = std::move(mine);
        CHECK(video.view().data == address);
        CHECK(mine.view().data == nullptr);
        CHECK(mine.bytes() == 0);
        CHECK(mine.elements<float>().empty());
        // The memory that it replaced is given back at once, and not kept by the other.
        CHECK(resource.bytes_in_use() == 96);
        mine = latent({1, 1, 2, 3, 4}, dtype::f32, source);
    }
    latent_block block(96, dtype::f32, source);
    block.place(1, 1, box_of({2, 3, 4}));
    latent_block other;
    other = std::move(block);
    CHECK(other.where() == box_of({2, 3, 4}));
    CHECK(other.view().bytes() == 96);
    CHECK(block.view().data == nullptr);
    CHECK(block.view().bytes() == 0);
    CHECK(block.where().empty());
    const latent_block third = std::move(other);
    CHECK(third.view().bytes() == 96);
    CHECK(other.view().data == nullptr);
    CHECK(other.view().bytes() == 0);
}

TEST_CASE("a tensor of half precision takes half the bytes") {
    CHECK(tensor<2>({3, 5}, dtype::bf16).bytes() == 30);
    CHECK(tensor<2>({3, 0}).bytes() == 0);
}

TEST_CASE("a tensor refuses a negative extent and the wrong element type") {
    CHECK_THROWS_AS((tensor<2>({3, -1})), usage_error);
    // The product of two negative extents would look like a size.
    CHECK_THROWS_WITH((tensor<2>({-2, -3})), "a tensor extent of -2 was asked for");
    // So would one of too many.
    constexpr index_t large = index_t{1} << 20;
    CHECK_THROWS_WITH(latent({1, 16, large, large, large}),
                      ContainsSubstring("more bytes than can be counted"));
    CHECK_THROWS_WITH((tensor<2>({index_t{1} << 61, 1})), ContainsSubstring("than can be counted"));
    CHECK_THROWS_AS(latent({0, large, large, large, large}), usage_error);
    tensor<1> numbers({4});
    CHECK_THROWS_AS(numbers.elements<std::int32_t>(), usage_error);
}

TEST_CASE("the counting resource remembers the most that was in use at once") {
    counting_resource resource;
    const memory_source source{&resource, memory_space::host};
    {
        const buffer a(64, source);
        { const buffer b(128, source); }
        const buffer c(32, source);
        CHECK(resource.bytes_in_use() == 96);
        CHECK(resource.peak_bytes() == 192);
        resource.reset_peak();
        CHECK(resource.peak_bytes() == 96);
    }
    CHECK(resource.allocations() == 3);
    CHECK(resource.bytes_in_use() == 0);
    CHECK(resource.peak_bytes() == 96);
}

TEST_CASE("the counting resource does not count what it could not get") {
    counting_resource resource(std::pmr::null_memory_resource());
    CHECK_THROWS_AS(buffer(8, {&resource, memory_space::host}), std::bad_alloc);
    CHECK(resource.bytes_in_use() == 0);
    CHECK(resource.allocations() == 0);
}

TEST_CASE("the counting resource counts from several threads") {
    counting_resource resource(std::pmr::new_delete_resource());
    constexpr int threads = 4;
    constexpr int rounds = 500;
    {
        std::vector<std::jthread> workers;
        for (int i = 0; i < threads; ++i) {
            workers.emplace_back([&] {
                for (int round = 0; round < rounds; ++round) {
                    const buffer taken(64, {&resource, memory_space::host});
                }
            });
        }
    }
    CHECK(resource.bytes_in_use() == 0);
    CHECK(resource.allocations() == threads * rounds);
    CHECK(resource.peak_bytes() >= 64);
    CHECK(resource.peak_bytes() <= threads * 64);
}
