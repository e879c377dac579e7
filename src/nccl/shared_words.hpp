// SPDX-License-Identifier: Apache-2.0
// Words of host memory that the ranks of a host share, and their devices with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace latpar::inline v0::nccl::detail {

/// 32-bit words, all zero at first: POSIX shared memory, page-locked, mapped by each rank.
///
/// Whoever has them keeps them until its device is done with them; what others do changes nothing.
class shared_words {
public:
    /// Makes them under a name of their own. Errors: device_error where a host cannot.
    explicit shared_words(std::size_t count);
    /// Those that another rank made. Errors: device_error, such as for ranks that see other memory.
    shared_words(std::string name, std::size_t count);
    shared_words(const shared_words&) = delete;
    shared_words& operator=(const shared_words&) = delete;
    ~shared_words();

    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    /// Takes the name away, once all have them.
    void unname() noexcept;
    [[nodiscard]] std::uint32_t* data() const noexcept { return words_; }
    /// A word as the device reaches it.
    [[nodiscard]] std::uintptr_t on_device(std::size_t index) const noexcept {
        return device_ + sizeof(std::uint32_t) * index;
    }

private:
    shared_words() = default;
    shared_words(std::string name, std::size_t count, int flags);

    std::string name_;
    std::size_t bytes_ = 0;
    bool is_named_ = false;  ///< by this rank
    std::uint32_t* words_ = nullptr;
    std::uintptr_t device_ = 0;
};

}  // namespace latpar::inline v0::nccl::detail
