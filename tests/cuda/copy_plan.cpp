// SPDX-License-Identifier: Apache-2.0
// How wide the accesses of a copy are, and how many launches copies take.
#include "emulated.hpp"

#include <latpar/core/memory.hpp>
#include <latpar/kernel/reference.hpp>

#include <support/catch.hpp>

using namespace latpar;
using namespace latpar::cuda::detail;

namespace {

/// The task of a copy between dense tensors of these types, cut to boxes of `extents`.
copy_task task_of(dtype from, dtype to, const std::array<index_t, 5>& extents,
                  const std::array<index_t, 5>& source_whole,
                  const std::array<index_t, 5>& target_whole, std::uintptr_t source = 4096,
                  std::uintptr_t target = 8192) {
    // Nothing is read or written: a plan knows addresses only.
    const const_latent_view in{reinterpret_cast<const std::byte*>(source), extents,
                               dense_strides(source_whole), from, memory_space::cuda};
    const latent_view out{reinterpret_cast<std::byte*>(target), extents,
                          dense_strides(target_whole), to, memory_space::cuda};
    return plan_copy(in, out, dtype::f32);
}

}  // namespace

TEST_CASE("copies of boxes take the widest accesses that there are") {
    const std::array<index_t, 5> whole{1, 16, 21, 60, 104};
    const std::array<index_t, 5> half_w{1, 16, 21, 60, 52};
    const copy_task packed = task_of(dtype::f32, dtype::f32, half_w, whole, half_w);
    CHECK(packed.width == 4);
    CHECK(packed.rows_are_even);
    CHECK(packed.shape.items == 16 * 21 * 60 * 13);
    // Half as many bytes: every second row begins within an access.
    const copy_task halves = task_of(dtype::bf16, dtype::bf16, half_w, whole, half_w);
    CHECK(halves.width == 4);
    CHECK_FALSE(halves.rows_are_even);
    CHECK(halves.shape.items == 16 * 21 * 60 * 8);
    // Into the larger tensor its rows begin at multiples of 16 bytes, and loads are of 8.
    const copy_task unpacked = task_of(dtype::bf16, dtype::bf16, half_w, half_w, whole);
    CHECK(unpacked.width == 4);
    CHECK(unpacked.rows_are_even);
    CHECK(unpacked.shape.items == 16 * 21 * 60 * 7);
    // Rows of odd length agree with nothing but their elements.
    const std::array<index_t, 5> odd{1, 16, 21, 60, 51};
    CHECK(task_of(dtype::f32, dtype::f32, odd, whole, odd).width == 1);
    // The same misalignment on both sides costs whole accesses nothing.
    CHECK(task_of(dtype::f32, dtype::f32, odd, whole, whole, 4100, 8196).width == 4);
    CHECK(task_of(dtype::f32, dtype::f32, odd, whole, whole, 4100, 8200).width == 1);
    CHECK(task_of(dtype::f32, dtype::f32, odd, whole, whole, 4104, 8192).width == 2);
    // Conversions move groups of 16 bytes of the target.
    const copy_task converted = task_of(dtype::f32, dtype::bf16, half_w, whole, half_w);
    CHECK(converted.width == 4);
    CHECK_FALSE(converted.rows_are_even);
    CHECK(converted.shape.items == 16 * 21 * 60 * 8);
    const copy_task widened = task_of(dtype::bf16, dtype::f32, half_w, half_w, whole);
    CHECK(widened.width == 4);
    CHECK(widened.rows_are_even);
    CHECK(widened.shape.items == 16 * 21 * 60 * 13);
}

TEST_CASE("copies ask for sectors where rows leave some in part") {
    const std::array<index_t, 5> whole{1, 16, 21, 60, 104};
    const auto fetches_parts = [&](dtype to, index_t columns, std::uintptr_t target,
                                   const std::array<index_t, 5>& into) {
        return task_of(dtype::f32, to, {1, 16, 21, 60, columns}, {1, 16, 21, 60, columns}, into,
                       4096, 8192 + target)
            .fetches_parts;
    };
    CHECK_FALSE(fetches_parts(dtype::f32, 56, 0, whole));
    CHECK_FALSE(fetches_parts(dtype::f32, 56, 96, whole));
    CHECK(fetches_parts(dtype::f32, 56, 16, whole));
    CHECK(fetches_parts(dtype::f32, 60, 0, whole));
    CHECK(fetches_parts(dtype::f32, 103, 0, whole));
    CHECK_FALSE(fetches_parts(dtype::bf16, 48, 0, {1, 16, 21, 60, 112}));
    CHECK(fetches_parts(dtype::bf16, 48, 0, whole));
    CHECK(fetches_parts(dtype::bf16, 56, 0, {1, 16, 21, 60, 112}));
    // Rows that touch fill every sector but the ends of it all.
    CHECK_FALSE(fetches_parts(dtype::f32, 51, 0, {1, 16, 21, 60, 51}));
    CHECK_FALSE(fetches_parts(dtype::bf16, 51, 2, {1, 16, 21, 60, 51}));
    CHECK_FALSE(task_of(dtype::f32, dtype::f32, {1, 16, 21, 60, 51}, whole, {1, 16, 21, 60, 51})
                    .fetches_parts);
    // Long rows gain nothing.
    const auto in_one_axis = [&](index_t columns) {
        return task_of(dtype::f32, dtype::f32, {1, 1, 1, 3, columns}, {1, 1, 1, 3, columns},
                       {1, 1, 1, 3, 1000})
            .fetches_parts;
    };
    CHECK(in_one_axis(511));
    CHECK_FALSE(in_one_axis(513));
    // A part along H of a tensor is runs of many rows.
    CHECK_FALSE(task_of(dtype::f32, dtype::f32, {1, 16, 21, 30, 104}, {1, 16, 21, 30, 104}, whole)
                    .fetches_parts);
    // What is rounded in place is read.
    const latent_view values{reinterpret_cast<std::byte*>(8192),
                             {1, 1, 1, 4, 5},
                             dense_strides(whole),
                             dtype::f32,
                             memory_space::cuda};
    CHECK_FALSE(plan_copy(values, values, dtype::bf16).fetches_parts);
}

TEST_CASE("one copy asks for sectors of the device's own memory, several never do") {
    const latent source({1, 1, 2, 3, 60});
    latent target({1, 1, 2, 3, 104});
    const kernel::copy_pair pair{source.view(), subview(target.view(), {{0, 0, 22}, {2, 3, 60}})};
    const std::vector<kernel::copy_pair> pairs(17, pair);
    int asking = 0;
    std::uint32_t copies = 0;
    const auto count = [&](const auto& batch) {
        for (std::uint32_t k = 0; k < batch.count; ++k) asking += batch.tasks[k].fetches_parts;
        copies += batch.count;
    };
    for (const bool is_own : {true, false}) {
        asking = 0;
        run_copy(
            pair, [&](const std::byte*) { return is_own; }, count);
        CHECK(asking == (is_own ? 1 : 0));
    }
    asking = 0;
    copies = 0;
    for (const std::size_t n : {1, 2, 17}) run_copies(std::span(pairs).first(n), count);
    CHECK(copies == 20);
    CHECK(asking == 0);
}

TEST_CASE("a row asks once for each sector that it fills in part, and for no other") {
    const auto check = []<class Source, class Target>(Source, Target) {
        constexpr index_t size = sizeof(Target);
        int different = 0;
        for (index_t length = 2; length <= 70; ++length) {
            for (index_t skip = 0; skip < sector_bytes / size; ++skip) {
                const auto row = static_cast<std::uintptr_t>(8192 + skip * size);
                const copy_task task = task_of(
                    std::is_same_v<Source, float> ? dtype::f32 : dtype::bf16,
                    std::is_same_v<Target, float> ? dtype::f32 : dtype::bf16, {1, 1, 1, 3, length},
                    {1, 1, 1, 3, length}, {1, 1, 1, 3, 1000}, 4096, row);
                std::vector<std::uintptr_t> asked;
                for (std::uint32_t item = 0; item < task.shape.items; ++item) {
                    const sector_request sector =
                        sector_of<size>(task, place_of<sizeof(Source), size>(task, item));
                    if (sector.is_wanted) asked.push_back(sector.at);
                }
                std::vector<std::uintptr_t> expected;
                for (std::uintptr_t r = 0; r < 3; ++r) {
                    const std::uintptr_t begin = row + r * 1000 * size;
                    const std::uintptr_t end = begin + static_cast<std::uintptr_t>(length * size);
                    for (std::uintptr_t s = begin / 32 * 32; s < end; s += 32) {
                        if (s < begin || s + 32 > end) expected.push_back(s);
                    }
                }
                different += asked != expected;
            }
        }
        return different;
    };
    CHECK(check(float{}, float{}) == 0);
    CHECK(check(bfloat16{}, float{}) == 0);
    CHECK(check(float{}, bfloat16{}) == 0);
    CHECK(check(bfloat16{}, bfloat16{}) == 0);
}

TEST_CASE("rows of every length and alignment are copied whole, and nothing beside them") {
    constexpr std::array types{dtype::f32, dtype::bf16, dtype::f16};
    std::vector<std::byte> source(4096);
    for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::byte>(i * 37 + 11);
    // Finite numbers, whatever the type: no exponent of ones.
    for (std::size_t i = 1; i < source.size(); i += 2) source[i] &= std::byte{0xbb};
    index_t different = 0;
    for (const dtype from : types) {
        for (const dtype to : types) {
            for (index_t length = 1; length <= 19; ++length) {
                for (index_t skip = 0; skip <= 8; ++skip) {
                    for (index_t gap = 0; gap <= 3; ++gap) {
                        const std::array<index_t, 5> extents{1, 1, 1, 3, length};
                        const auto pitched = [&](index_t pitch) {
                            return std::array<index_t, 5>{0, 0, 0, pitch, 1};
                        };
                        std::vector<std::byte> got(1024, std::byte{0x5a});
                        std::vector<std::byte> expected = got;
                        const auto target = [&](std::vector<std::byte>& bytes) {
                            return latent_view{bytes.data() + 64 + skip / 2 * size_of(to), extents,
                                               pitched(length + 3 - gap), to};
                        };
                        const const_latent_view in{source.data() + skip * size_of(from), extents,
                                                   pitched(length + gap), from};
                        kernel::reference{}.copy(in, target(expected));
                        for (const bool owns_targets : {true, false}) {
                            std::ranges::fill(got, std::byte{0x5a});
                            emulated_kernels kernels;
                            kernels.owns_targets = owns_targets;
                            kernels.copy(in, target(got));
                            different += got != expected;
                        }
                    }
                }
            }
        }
    }
    CHECK(different == 0);
}

TEST_CASE("elements that are no neighbours are moved one by one") {
    latent values({1, 2, 3, 4, 5});
    latent_view transposed = values.view();
    std::swap(transposed.extents[3], transposed.extents[4]);
    std::swap(transposed.strides[3], transposed.strides[4]);
    latent target({1, 2, 3, 5, 4});
    const copy_task task = plan_copy(transposed, target.view(), dtype::f32);
    CHECK(task.width == 0);
    CHECK(task.shape.items == 2 * 3 * 4 * 5);
}

TEST_CASE("copies share launches") {
    int launches = 0;
    emulated_kernels kernels;
    kernels.launches = &launches;
    latent source({1, 1, 1, 2, 3});
    std::vector<latent> targets;
    std::vector<kernel::copy_pair> copies;
    for (int k = 0; k < 300; ++k) {
        targets.emplace_back(std::array<index_t, 5>{1, 1, 1, 2, 3});
        copies.push_back({source.view(), targets.back().view()});
    }
    std::ranges::fill(source.elements<float>(), 1.0f);
    const auto launches_of = [&](std::size_t count) {
        launches = 0;
        kernels.copy_all(std::span(copies).first(count));
        return launches;
    };
    CHECK(launches_of(0) == 0);
    CHECK(launches_of(1) == 1);
    CHECK(launches_of(2) == 1);
    CHECK(launches_of(128) == 1);
    CHECK(launches_of(129) == 2);
    CHECK(launches_of(300) == 3);
    // What has no elements takes no launch.
    latent nothing({1, 1, 0, 2, 3});
    launches = 0;
    kernels.copy(nothing.view(), nothing.view());
    CHECK(launches == 0);
}
