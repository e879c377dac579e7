// SPDX-License-Identifier: Apache-2.0
// What the process has allocated, and memory that is larger than it is.
#pragma once

#include <cstddef>
#include <cstdint>

/// How often operator new was called in this process.
[[nodiscard]] long allocation_count() noexcept;

/// The resident set of this process.
[[nodiscard]] std::size_t resident_bytes();

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LATPAR_TEST_SANITIZED 1
#elif defined(__has_feature)
#define LATPAR_TEST_SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#define LATPAR_TEST_SANITIZED 0
#endif

/// Under a sanitizer nothing is counted, and the process grows for its own reasons.
[[nodiscard]] constexpr bool is_sanitized() noexcept {
    return LATPAR_TEST_SANITIZED != 0;
}

/// A long range of addresses onto one short run of pages.
class repeated_bytes {
public:
    static constexpr std::size_t period = std::size_t{16} << 20;

    explicit repeated_bytes(std::size_t size);
    repeated_bytes(const repeated_bytes&) = delete;
    repeated_bytes& operator=(const repeated_bytes&) = delete;
    ~repeated_bytes();

    [[nodiscard]] std::uint8_t* data() const noexcept { return data_; }

private:
    std::size_t mapped_ = 0;
    std::uint8_t* data_ = nullptr;
};
