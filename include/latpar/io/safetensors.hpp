// SPDX-License-Identifier: Apache-2.0
// Safetensors files: a strict, memory-mapped reader and an atomic writer.
#pragma once

#include <latpar/core/view.hpp>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace latpar::inline v0 {

/// One tensor of a safetensors file; `data` points into the bytes that were parsed.
///
/// Memory: `data` is little-endian, row-major, and aligned only as the file's author cared to.
struct safetensors_entry {
    std::string name;
    std::string_view format;  ///< The format's name of the element type, e.g. "BF16".
    std::vector<index_t> shape;
    std::span<const std::byte> data;

    [[nodiscard]] index_t elements() const noexcept;

    /// The element type. Errors: io_error if latpar has no such type (I8, F8_E4M3, ...).
    [[nodiscard]] dtype type() const;

    /// The elements, copied. Errors: io_error if T is not the element type.
    template <class T>
    [[nodiscard]] std::vector<T> values() const {
        detail::require<io_error>(type() == dtype_of<T>, "tensor '", name, "' holds ", format,
                                  " and was read as ", name_of(dtype_of<T>));
        std::vector<T> out(static_cast<std::size_t>(elements()));
        if (!out.empty()) std::memcpy(out.data(), data.data(), data.size());
        return out;
    }
};

/// The elements of an F32, BF16, F16 or F64 tensor as float.
///
/// Errors: io_error for any other element type, usage_error if `out` has another size.
void to_float32(const safetensors_entry& entry, std::span<float> out);
[[nodiscard]] std::vector<float> to_float32(const safetensors_entry& entry);

/// What a safetensors file says.
struct safetensors_content {
    std::map<std::string, safetensors_entry, std::less<>> entries;
    std::map<std::string, std::string, std::less<>> metadata;
};

/// Parses the bytes of a whole file; the entries point into `bytes`.
///
/// Everything that the format leaves to the reader's goodwill is refused: a header over 100 MB, one
/// that does not begin with '{' or is not UTF-8, duplicate keys, unknown keys or element types,
/// numbers that are not unsigned integers, sizes that overflow or do not match the shape, tensors
/// that overlap, leave a hole or reach outside the file, and anything but spaces after the JSON.
/// Errors: io_error that begins with `where`.
/// Source: https://github.com/huggingface/safetensors#format
[[nodiscard]] safetensors_content parse_safetensors(std::span<const std::byte> bytes,
                                                    std::string_view where = "safetensors");

/// A safetensors file, mapped into memory for reading.
///
/// Memory: the entries' data stay valid while this object, or what it was moved to, lives.
/// Example: `auto bias = to_float32(safetensors_file::open("model.safetensors").at("bias"));`
class safetensors_file {
public:
    /// Errors: io_error if the file cannot be read or parse_safetensors refuses it.
    [[nodiscard]] static safetensors_file open(const std::filesystem::path& path);

    safetensors_file(safetensors_file&& other) noexcept;
    safetensors_file& operator=(safetensors_file&& other) noexcept;
    safetensors_file(const safetensors_file&) = delete;
    safetensors_file& operator=(const safetensors_file&) = delete;
    ~safetensors_file();

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    /// The tensors' names, sorted.
    [[nodiscard]] std::vector<std::string_view> names() const;
    /// Null if there is no such tensor.
    [[nodiscard]] const safetensors_entry* find(std::string_view name) const;
    /// Errors: io_error if there is no such tensor.
    [[nodiscard]] const safetensors_entry& at(std::string_view name) const;
    [[nodiscard]] const auto& entries() const noexcept { return content_.entries; }
    [[nodiscard]] const auto& metadata() const noexcept { return content_.metadata; }

private:
    safetensors_file() = default;

    std::filesystem::path path_;
    std::span<const std::byte> mapped_;
    safetensors_content content_;
};

/// Collects tensors and writes them as one file.
///
/// Memory: the tensors' data are not copied and must live until the file is written.
/// Errors: usage_error from `add` for a name that was added before, is reserved or is not UTF-8,
/// and for data that do not match the shape.
class safetensors_writer {
public:
    void add(std::string name, dtype type, std::vector<index_t> shape,
             std::span<const std::byte> data);

    template <class T>
    void add(std::string name, std::vector<index_t> shape, std::span<const T> values) {
        add(std::move(name), dtype_of<T>, std::move(shape), std::as_bytes(values));
    }

    /// Errors: usage_error if the view is not contiguous host memory.
    template <class Byte, std::size_t Rank>
    void add(std::string name, const basic_view<Byte, Rank>& view) {
        detail::require(view.space == memory_space::host && view.is_contiguous(), "tensor '", name,
                        "' is not contiguous host memory; copy it there first");
        add(std::move(name), view.type, {view.extents.begin(), view.extents.end()},
            {view.data, static_cast<std::size_t>(view.bytes())});
    }

    /// An entry of another file, whatever its element type.
    void add(safetensors_entry entry);

    /// Sets one key of the file's `__metadata__`.
    void set_metadata(std::string key, std::string value);

    /// The whole file.
    [[nodiscard]] std::vector<std::byte> bytes() const;

    /// Writes the file under a temporary name beside `path`, then renames it.
    ///
    /// A reader sees the old file or the new one, never a part.
    /// Errors: io_error if that fails; `path` is then untouched.
    void write(const std::filesystem::path& path) const;

private:
    [[nodiscard]] std::vector<const safetensors_entry*> in_file_order() const;
    [[nodiscard]] std::string header(const std::vector<const safetensors_entry*>& order) const;

    safetensors_content content_;
};

}  // namespace latpar::inline v0
