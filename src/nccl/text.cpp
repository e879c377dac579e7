// SPDX-License-Identifier: Apache-2.0
// What ranks tell each other when they set something up.
#include <nccl/text.hpp>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <random>

namespace latpar::inline v0::nccl::detail {

const std::string& host_name() {
    static const std::string name = [] {
        std::array<char, 256> host{};
        static_cast<void>(gethostname(host.data(), host.size() - 1));
        // Names repeat, in containers above all.
        std::string boot;
        std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
        return latpar::detail::concat(host.data(), '/', boot);
    }();
    return name;
}

const std::string& process_name() {
    static const std::string name = [] {
        std::random_device random;
        std::array<std::uint32_t, 4> words{};
        for (std::uint32_t& word : words) word = random();
        return hex_of(words.data(), sizeof words);
    }();
    return name;
}

std::string hex_of(const void* data, std::size_t size) {
    constexpr char digits[] = "0123456789abcdef";
    std::string out;
    for (std::size_t i = 0; i < size; ++i) {
        const unsigned byte = static_cast<const unsigned char*>(data)[i];
        out += {digits[byte / 16], digits[byte % 16]};
    }
    return out;
}

void from_hex(const std::string& text, void* data, std::size_t size) {
    bool is_good = text.size() == 2 * size;
    for (std::size_t i = 0; is_good && i < size; ++i) {
        const char* const first = text.data() + 2 * i;
        is_good = std::from_chars(first, first + 2, static_cast<unsigned char*>(data)[i], 16).ptr ==
                  first + 2;
    }
    latpar::detail::require<comm_error>(is_good, "'", text,
                                        "' is not what a rank of NCCL tells; "
                                        "do all ranks make the same calls?");
}

}  // namespace latpar::inline v0::nccl::detail
