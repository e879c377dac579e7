// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels without a device: their plans and what their threads do, on the host.
#include "emulated.hpp"

#include "kernel_cases.hpp"

using namespace latpar;

namespace {

/// Host memory and the emulated kernels.
struct host_lab {
    emulated_kernels emulated;

    [[nodiscard]] const emulated_kernels& kernels() const { return emulated; }
    [[nodiscard]] memory_source memory() const { return {}; }
    void upload(std::byte* to, std::span<const std::byte> bytes) const {
        std::copy(bytes.begin(), bytes.end(), to);
    }
    void download(std::span<std::byte> bytes, const std::byte* from) const {
        std::copy_n(from, bytes.size(), bytes.begin());
    }
};

}  // namespace

// Cases run with as much as one launch may do, and with so little that most is cut into many.

TEST_CASE("emulated copies have the bits of the reference") {
    host_lab lab{{GENERATE(values<index_t>({cuda::detail::max_positions, 997}))}};
    kernel_cases::check_copies(lab);
    kernel_cases::check_boxes(lab);
    kernel_cases::check_rounding(lab);
}

TEST_CASE("emulated conversions have the bits of the reference") {
    host_lab lab;
    kernel_cases::check_conversions(lab);
}

TEST_CASE("emulated batches of copies have the bits of the reference") {
    host_lab lab{{GENERATE(values<index_t>({cuda::detail::max_positions, 997}))}};
    for (const std::size_t count : {std::size_t{0}, std::size_t{5}, std::size_t{40}}) {
        kernel_cases::check_copy_all(lab, count);
    }
    kernel_cases::check_copy_all(lab, 300);
}

TEST_CASE("emulated stitches have the bits of the reference") {
    host_lab lab{{GENERATE(values<index_t>({cuda::detail::max_positions, 997}))}};
    for (const axis along : all_axes) {
        kernel_cases::check_stitch(lab, along, 100, 5, 30);
        // More parts, and more weights, than the small task holds.
        kernel_cases::check_stitch(lab, along, 5, 60, 30);
        kernel_cases::check_stitch(lab, along, 3, 10, 900);
    }
}

TEST_CASE("an emulated stitch in which blocks take turns has the bits of the reference") {
    host_lab lab;
    kernel_cases::check_large_stitch(lab);
}

TEST_CASE("emulated combinations of a stitch have the bits of the two calls") {
    host_lab lab{{GENERATE(values<index_t>({cuda::detail::max_positions, 997}))}};
    for (const axis along : all_axes) {
        kernel_cases::check_stitch_combinations(lab, along, 60, 5, 30, 4);
        // More parts, weights and operands than the small task holds.
        kernel_cases::check_stitch_combinations(lab, along, 3, 60, 30, 3);
        kernel_cases::check_stitch_combinations(lab, along, 1, 10, 900, 2);
        kernel_cases::check_stitch_combinations(lab, along, 8, 5, 30, kernel::max_operands);
    }
}

TEST_CASE("emulated linear combinations have the bits of the reference") {
    host_lab lab{{GENERATE(values<index_t>({cuda::detail::max_positions, 997}))}};
    kernel_cases::check_combinations(lab, 200, 5);
    kernel_cases::check_combinations(lab, 20, kernel::max_operands);
    kernel_cases::check_combinations(lab, 100, 5, true);
    kernel_cases::check_combinations(lab, 20, kernel::max_operands, true);
    kernel_cases::check_unread_inputs(lab);
}

TEST_CASE("emulated merges have the bits of the reference") {
    host_lab lab{{GENERATE(values<index_t>({cuda::detail::max_positions, 997}))}};
    kernel_cases::check_merges(lab, true);
}
