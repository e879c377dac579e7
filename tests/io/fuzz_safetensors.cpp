// SPDX-License-Identifier: Apache-2.0
// A libFuzzer target: any bytes are refused with io_error, or describe tensors within themselves.
#include <latpar/io/safetensors.hpp>

#include <cstdint>
#include <cstdlib>
#include <iostream>

using namespace latpar;

namespace {

void check(bool condition, const char* what) {
    if (condition) return;
    std::cerr << what << '\n';
    std::abort();
}

void check_equal(const safetensors_content& a, const safetensors_content& b) {
    check(a.metadata == b.metadata, "the metadata changed");
    check(a.entries.size() == b.entries.size(), "the number of tensors changed");
    for (const auto& [name, entry] : a.entries) {
        const auto found = b.entries.find(name);
        check(found != b.entries.end(), "a tensor was lost");
        check(entry.format == found->second.format, "a dtype changed");
        check(entry.shape == found->second.shape, "a shape changed");
        check(std::ranges::equal(entry.data, found->second.data), "the data changed");
    }
}

// A header of the given text in front of the data: the mutator then need not guess its length.
std::vector<std::byte> with_length(std::span<const std::byte> bytes) {
    std::size_t header = 0;
    while (header < bytes.size() && bytes[header] != std::byte{'|'}) ++header;
    const auto length = std::as_bytes(std::span(&header, 1));
    std::vector<std::byte> out(length.begin(), length.end());
    out.insert(out.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(header));
    if (header < bytes.size()) {
        out.insert(out.end(), bytes.begin() + static_cast<std::ptrdiff_t>(header) + 1, bytes.end());
    }
    return out;
}

void try_parse(std::span<const std::byte> bytes) {
    safetensors_content content;
    try {
        content = parse_safetensors(bytes);
    } catch (const io_error&) {
        return;
    }
    safetensors_writer writer;
    std::size_t total = 0;
    for (const auto& [name, entry] : content.entries) {
        check(name == entry.name, "an entry has another name than its key");
        check(entry.data.data() >= bytes.data() &&
                  entry.data.data() + entry.data.size() <= bytes.data() + bytes.size(),
              "a tensor lies outside the buffer");
        total += entry.data.size();
        try {
            check(
                entry.elements() * size_of(entry.type()) == static_cast<index_t>(entry.data.size()),
                "the size does not match the shape");
            static_cast<void>(to_float32(entry));
        } catch (const io_error&) {
        }
        writer.add(entry);
    }
    check(total <= bytes.size(), "the tensors overlap");
    for (const auto& [key, value] : content.metadata) writer.set_metadata(key, value);
    const auto written = writer.bytes();
    check_equal(content, parse_safetensors(written));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto bytes = std::as_bytes(std::span(data, size));
    try_parse(bytes);
    try_parse(with_length(bytes));
    return 0;
}
