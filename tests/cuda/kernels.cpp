// SPDX-License-Identifier: Apache-2.0
// cuda::kernels against kernel::reference on a device.
#include "device_lab.hpp"
#include "kernel_cases.hpp"

using namespace latpar;

TEST_CASE("device copies have the bits of the reference") {
    device_lab lab;
    kernel_cases::check_copies(lab);
    kernel_cases::check_boxes(lab);
    kernel_cases::check_rounding(lab);
}

TEST_CASE("device conversions have the bits of the reference, NaNs included") {
    device_lab lab;
    kernel_cases::check_conversions(lab);
}

TEST_CASE("device batches of copies have the bits of the reference") {
    device_lab lab;
    for (const std::size_t count : {0, 1, 5, 16, 17, 128, 129, 300}) {
        kernel_cases::check_copy_all(lab, count);
    }
}

TEST_CASE("device stitches have the bits of the reference") {
    device_lab lab;
    for (const axis along : all_axes) {
        kernel_cases::check_stitch(lab, along, 200, 5, 30);
        kernel_cases::check_stitch(lab, along, 10, 60, 30);
        kernel_cases::check_stitch(lab, along, 5, 10, 900);
    }
}

TEST_CASE("device combinations of a stitch have the bits of the two calls") {
    device_lab lab;
    for (const axis along : all_axes) {
        kernel_cases::check_stitch_combinations(lab, along, 200, 5, 30, 4);
        kernel_cases::check_stitch_combinations(lab, along, 10, 60, 30, 3);
        kernel_cases::check_stitch_combinations(lab, along, 5, 10, 900, 2);
        kernel_cases::check_stitch_combinations(lab, along, 40, 5, 30, kernel::max_operands);
    }
}

TEST_CASE("device linear combinations have the bits of the reference, in place or not") {
    device_lab lab;
    kernel_cases::check_combinations(lab, 300, 5);
    kernel_cases::check_combinations(lab, 40, kernel::max_operands);
    kernel_cases::check_combinations(lab, 100, 5, true);
    kernel_cases::check_combinations(lab, 20, kernel::max_operands, true);
    kernel_cases::check_unread_inputs(lab);
}

TEST_CASE("device merges are within 1e-6 of the reference") {
    device_lab lab;
    kernel_cases::check_merges(lab, false);
}

// Beyond what one block, and one wave of blocks, works on.
TEST_CASE("a stitch in which blocks take turns has the bits of the reference") {
    device_lab lab;
    kernel_cases::check_large_stitch(lab);
}

TEST_CASE("large latents are copied, converted and brought back") {
    device_lab lab;
    std::mt19937 generator(21);
    const std::array<index_t, 5> extents{1, 16, 21, 90, 163};
    random_latent source(extents, dtype::f32, generator);
    random_latent narrow(extents, dtype::bf16, generator);
    random_latent back(extents, dtype::f32, generator);
    const kernel_cases::placed source_there(lab, source, generator);
    const kernel_cases::placed narrow_there(lab, narrow, generator);
    const kernel_cases::placed back_there(lab, back, generator);
    kernel::reference{}.copy(source.view(), narrow.view());
    kernel::reference{}.copy(narrow.view(), back.view());
    lab.kernels().copy(source_there.view(), narrow_there.view());
    lab.kernels().copy(narrow_there.view(), back_there.view());
    CHECK(narrow_there.holds(narrow));
    CHECK(back_there.holds(back));
}

TEST_CASE("an error is reported once, with what was being done") {
    device_lab lab;
    std::mt19937 generator(22);
    random_latent values({1, 1, 1, 1, 8}, dtype::f32, generator);
    const kernel_cases::placed there(lab, values, generator);
    CHECK_THROWS_AS(cuda::set_device(1000), device_error);
    CHECK_THROWS_WITH(
        cuda::set_device(1000),
        ContainsSubstring("device 1000 was to be made current") && ContainsSubstring("use 0 to "));
    // The error was reported, and is not found again.
    lab.kernels().round(there.view(), dtype::bf16);
    kernel::reference{}.round(values.view(), dtype::bf16);
    CHECK(there.holds(values));
}
