// SPDX-License-Identifier: Apache-2.0
// Safetensors files: header parsing, memory mapping and writing.
#include <latpar/io/safetensors.hpp>

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <limits>
#include <optional>
#include <system_error>
#include <utility>

namespace latpar::inline v0 {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::size_t length_bytes = 8;
constexpr std::uint64_t max_header_bytes = 100'000'000;
constexpr std::string_view metadata_key = "__metadata__";

using detail::concat;
using detail::require;

struct format_info {
    std::string_view name;
    std::uint64_t bits;
    std::optional<dtype> type;
};

constexpr std::array formats{
    format_info{"BOOL", 8, {}},           format_info{"F4", 4, {}},
    format_info{"F6_E2M3", 6, {}},        format_info{"F6_E3M2", 6, {}},
    format_info{"U8", 8, dtype::u8},      format_info{"I8", 8, {}},
    format_info{"F8_E5M2", 8, {}},        format_info{"F8_E4M3", 8, {}},
    format_info{"F8_E8M0", 8, {}},        format_info{"F8_E4M3FNUZ", 8, {}},
    format_info{"F8_E5M2FNUZ", 8, {}},    format_info{"I16", 16, {}},
    format_info{"U16", 16, {}},           format_info{"F16", 16, dtype::f16},
    format_info{"BF16", 16, dtype::bf16}, format_info{"I32", 32, dtype::i32},
    format_info{"U32", 32, {}},           format_info{"F32", 32, dtype::f32},
    format_info{"C64", 64, {}},           format_info{"F64", 64, dtype::f64},
    format_info{"I64", 64, dtype::i64},   format_info{"U64", 64, {}},
};

const format_info* find_format(std::string_view name) noexcept {
    const auto found = std::ranges::find(formats, name, &format_info::name);
    return found == formats.end() ? nullptr : &*found;
}

const format_info& format_of(dtype type) noexcept {
    return *std::ranges::find(formats, std::optional(type), &format_info::type);
}

// Names come from outside and may be as long as a header.
std::string shown(std::string_view text) {
    constexpr std::size_t most = 200;
    if (text.size() <= most) return std::string(text);
    return concat(text.substr(0, most), "... (", text.size(), " bytes)");
}

std::string in_quotes(std::string_view text) {
    return concat('\'', shown(text), '\'');
}

std::string text_of(const std::vector<index_t>& shape) {
    std::string out = "[";
    for (const index_t extent : shape) {
        out += concat(out.size() > 1 ? "," : "", extent);
        if (out.size() > 100) return out + ",...]";
    }
    return out + "]";
}

// The bytes of a tensor; nothing if they overflow or are not whole.
std::optional<std::uint64_t> size_in_bytes(const std::vector<index_t>& shape, std::uint64_t bits) {
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<index_t>::max());
    std::uint64_t total = bits;
    bool empty = false;
    for (const index_t extent : shape) {
        if (extent < 0) return {};
        if (extent == 0) {
            empty = true;
        } else if (total > most / static_cast<std::uint64_t>(extent)) {
            return {};
        } else {
            total *= static_cast<std::uint64_t>(extent);
        }
    }
    if (empty) return 0;
    if (total % 8 != 0) return {};
    return total / 8;
}

// The header as nlohmann's SAX events: duplicate keys are seen here, a parsed tree would hide them.
class header_reader {
public:
    using number_integer_t = nlohmann::json::number_integer_t;
    using number_unsigned_t = nlohmann::json::number_unsigned_t;
    using number_float_t = nlohmann::json::number_float_t;
    using string_t = nlohmann::json::string_t;
    using binary_t = nlohmann::json::binary_t;

    struct tensor_info {
        safetensors_entry entry;
        std::uint64_t begin = 0;
        std::uint64_t end = 0;
    };

    explicit header_reader(std::string_view where) : where_(where) {}

    bool null() { refuse("null"); }
    bool boolean(bool) { refuse("a boolean"); }
    bool number_integer(number_integer_t value) { refuse(concat("the negative number ", value)); }
    bool number_float(number_float_t, const string_t& text) {
        refuse(concat("the number ", shown(text), " (only unsigned integers are allowed)"));
    }
    bool binary(binary_t&) { refuse("binary data"); }

    bool number_unsigned(number_unsigned_t value) {
        if (place_ == place::shape) {
            require<io_error>(value <= std::numeric_limits<index_t>::max(), where_, ": tensor ",
                              in_quotes(name_), " has the extent ", value, ", which overflows");
            entry_.shape.push_back(static_cast<index_t>(value));
        } else if (place_ == place::offsets && offsets_.size() < 2) {
            offsets_.push_back(value);
        } else {
            refuse(concat("the number ", value));
        }
        return true;
    }

    bool string(string_t& value) {
        if (place_ == place::metadata) {
            metadata.find(key_)->second = std::move(value);
        } else if (place_ == place::tensor && key_ == "dtype") {
            const format_info* format = find_format(value);
            require<io_error>(format, where_, ": tensor ", in_quotes(name_),
                              " has the unknown dtype ", in_quotes(value));
            entry_.format = format->name;
        } else {
            refuse(concat("the string ", in_quotes(value)));
        }
        return true;
    }

    bool start_object(std::size_t) {
        if (place_ == place::start) {
            place_ = place::root;
        } else if (place_ == place::root) {
            place_ = name_ == metadata_key ? place::metadata : place::tensor;
        } else {
            refuse("an object");
        }
        return true;
    }

    bool key(string_t& value) {
        if (place_ == place::root) {
            name_ = std::move(value);
            const bool fresh = name_ == metadata_key ? !std::exchange(has_metadata_, true)
                                                     : tensors.try_emplace(name_).second;
            require<io_error>(fresh, where_, ": the key ", in_quotes(name_), " appears twice");
        } else if (place_ == place::metadata) {
            key_ = std::move(value);
            require<io_error>(metadata.try_emplace(key_).second, where_, ": the metadata key ",
                              in_quotes(key_), " appears twice");
        } else {
            key_ = std::move(value);
            const auto known = std::ranges::find(tensor_keys, key_);
            require<io_error>(known != tensor_keys.end(), where_, ": tensor ", in_quotes(name_),
                              " has the unknown key ", in_quotes(key_),
                              "; dtype, shape and data_offsets are known");
            bool& seen = seen_[static_cast<std::size_t>(known - tensor_keys.begin())];
            require<io_error>(!std::exchange(seen, true), where_, ": tensor ", in_quotes(name_),
                              " has the key ", in_quotes(key_), " twice");
        }
        return true;
    }

    bool end_object() {
        if (place_ == place::tensor) {
            for (std::size_t i = 0; i < seen_.size(); ++i) {
                require<io_error>(seen_[i], where_, ": tensor ", in_quotes(name_),
                                  " lacks the key '", tensor_keys[i], "'");
            }
            entry_.name = name_;
            tensors[name_] = {std::exchange(entry_, {}), offsets_[0], offsets_[1]};
            offsets_.clear();
            seen_ = {};
        }
        place_ = place_ == place::root ? place::done : place::root;
        return true;
    }

    bool start_array(std::size_t) {
        if (place_ == place::tensor && key_ == "shape") {
            place_ = place::shape;
        } else if (place_ == place::tensor && key_ == "data_offsets") {
            place_ = place::offsets;
        } else {
            refuse("an array");
        }
        return true;
    }

    bool end_array() {
        require<io_error>(place_ == place::shape || offsets_.size() == 2, where_, ": tensor ",
                          in_quotes(name_), " has ", offsets_.size(), " data_offsets instead of 2");
        place_ = place::tensor;
        return true;
    }

    bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& problem) {
        throw io_error(concat(where_, ": the header is not valid JSON: ", shown(problem.what())));
    }

    std::map<std::string, tensor_info, std::less<>> tensors;
    std::map<std::string, std::string, std::less<>> metadata;

private:
    enum class place { start, root, metadata, tensor, shape, offsets, done };
    static constexpr std::array<std::string_view, 3> tensor_keys{"dtype", "shape", "data_offsets"};

    [[noreturn]] void refuse(const std::string& what) const {
        std::string at = "the start";
        if (place_ != place::start) at = in_quotes(name_);
        if (place_ == place::metadata || place_ == place::tensor)
            at += concat(", ", in_quotes(key_));
        if (place_ == place::shape) at += ", shape";
        if (place_ == place::offsets) at += ", data_offsets";
        throw io_error(concat(where_, ": the header has ", what, " at ", at));
    }

    std::string where_;
    place place_ = place::start;
    std::string name_;
    std::string key_;
    bool has_metadata_ = false;
    std::array<bool, 3> seen_{};
    std::vector<std::uint64_t> offsets_;
    safetensors_entry entry_;
};

void check_tiling(const std::vector<const header_reader::tensor_info*>& by_offset,
                  std::uint64_t available, std::string_view where) {
    std::uint64_t expected = 0;
    for (const auto* tensor : by_offset) {
        const std::string name = in_quotes(tensor->entry.name);
        require<io_error>(tensor->begin <= tensor->end, where, ": tensor ", name, " ends at ",
                          tensor->end, " before it begins at ", tensor->begin);
        require<io_error>(tensor->end <= available, where, ": tensor ", name, " ends at ",
                          tensor->end, ", outside the file, which has ", available,
                          " bytes of data");
        require<io_error>(tensor->begin >= expected, where, ": tensor ", name, " begins at ",
                          tensor->begin, " and overlaps the one that ends at ", expected);
        require<io_error>(tensor->begin == expected, where, ": there is a hole from ", expected,
                          " to ", tensor->begin, ", before tensor ", name);
        const auto bytes =
            size_in_bytes(tensor->entry.shape, find_format(tensor->entry.format)->bits);
        require<io_error>(bytes.has_value(), where, ": tensor ", name, " of shape ",
                          text_of(tensor->entry.shape), " and dtype ", tensor->entry.format,
                          " has a size that overflows or is no whole number of bytes");
        require<io_error>(tensor->end - tensor->begin == *bytes, where, ": tensor ", name,
                          " of shape ", text_of(tensor->entry.shape), " and dtype ",
                          tensor->entry.format, " needs ", *bytes, " bytes but has ",
                          tensor->end - tensor->begin);
        expected = tensor->end;
    }
    require<io_error>(expected == available, where, ": the tensors end at ", expected,
                      " but the file has ", available, " bytes of data");
}

class file_descriptor {
public:
    explicit file_descriptor(int value) noexcept : value_(value) {}
    file_descriptor(const file_descriptor&) = delete;
    file_descriptor& operator=(const file_descriptor&) = delete;
    ~file_descriptor() {
        if (value_ >= 0) ::close(value_);
    }
    [[nodiscard]] int get() const noexcept { return value_; }
    [[nodiscard]] int close() noexcept { return ::close(std::exchange(value_, -1)); }

private:
    int value_;
};

[[noreturn]] void throw_system_error(std::string_view what, const std::filesystem::path& path) {
    const int code = errno;
    throw io_error(
        concat("cannot ", what, " '", path.string(), "': ", std::generic_category().message(code)));
}

void unmap(std::span<const std::byte> mapped) noexcept {
    if (!mapped.empty()) ::munmap(const_cast<std::byte*>(mapped.data()), mapped.size());
}

void write_all(int file, std::span<const std::byte> bytes, const std::filesystem::path& path) {
    while (!bytes.empty()) {
        const ssize_t written = ::write(file, bytes.data(), bytes.size());
        if (written < 0) {
            if (errno == EINTR) continue;
            throw_system_error("write", path);
        }
        bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
}

std::string json_string(const std::string& text) {
    try {
        return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
        throw usage_error(concat("the text ", in_quotes(text), " is not UTF-8"));
    }
}

std::array<std::byte, length_bytes> length_prefix(const std::string& header) {
    return std::bit_cast<std::array<std::byte, length_bytes>>(std::uint64_t{header.size()});
}

}  // namespace

index_t safetensors_entry::elements() const noexcept {
    index_t count = 1;
    for (const index_t extent : shape) {
        if (extent == 0) return 0;
        count *= extent;
    }
    return count;
}

dtype safetensors_entry::type() const {
    const format_info* info = find_format(format);
    require<io_error>(
        info && info->type, "tensor ", in_quotes(name), " holds ", format,
        ", which latpar does not read; convert it to F32, BF16, F16, F64, I64, I32 or U8");
    return *info->type;
}

void to_float32(const safetensors_entry& entry, std::span<float> out) {
    const dtype type = entry.type();
    require<io_error>(is_floating(type), "tensor ", in_quotes(entry.name), " holds ", entry.format,
                      "; F32, BF16, F16 or F64 was expected");
    require(static_cast<index_t>(out.size()) == entry.elements(), "tensor ", in_quotes(entry.name),
            " has ", entry.elements(), " elements, the destination ", out.size());
    if (out.empty()) return;
    const auto convert = [&]<class T>(T) {
        for (std::size_t i = 0; i < out.size(); ++i) {
            T value;
            std::memcpy(&value, entry.data.data() + i * sizeof(T), sizeof(T));
            if constexpr (std::is_same_v<T, double>) {
                out[i] = static_cast<float>(value);
            } else {
                out[i] = to_float(value);
            }
        }
    };
    switch (type) {
        case dtype::f16:
            return convert(float16{});
        case dtype::bf16:
            return convert(bfloat16{});
        case dtype::f64:
            return convert(double{});
        default:
            std::memcpy(out.data(), entry.data.data(), entry.data.size());
    }
}

std::vector<float> to_float32(const safetensors_entry& entry) {
    std::vector<float> out(static_cast<std::size_t>(entry.elements()));
    to_float32(entry, out);
    return out;
}

safetensors_content parse_safetensors(std::span<const std::byte> bytes, std::string_view where) {
    require<io_error>(bytes.size() >= length_bytes, where, ": ", bytes.size(),
                      " bytes are too few for a safetensors file");
    std::uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), length_bytes);
    require<io_error>(header_bytes <= max_header_bytes, where,
                      " is not a safetensors file: its first 8 bytes would give a header of ",
                      header_bytes, " bytes, over the limit of ", max_header_bytes);
    require<io_error>(header_bytes <= bytes.size() - length_bytes, where, ": the header of ",
                      header_bytes, " bytes reaches outside the file of ", bytes.size(), " bytes");
    std::string_view header(reinterpret_cast<const char*>(bytes.data()) + length_bytes,
                            static_cast<std::size_t>(header_bytes));
    require<io_error>(header.starts_with('{'), where, ": the header does not begin with '{'");
    // The JSON library would take a NUL for the end of its input.
    require<io_error>(header.find('\0') == std::string_view::npos, where,
                      ": the header contains a NUL byte");
    header = header.substr(0, header.find_last_not_of(' ') + 1);
    require<io_error>(header.ends_with('}'), where,
                      ": the header does not end with '}' and padding spaces");

    header_reader reader(where);
    nlohmann::json::sax_parse(header.begin(), header.end(), &reader);

    std::vector<const header_reader::tensor_info*> by_offset;
    for (const auto& [name, tensor] : reader.tensors) by_offset.push_back(&tensor);
    std::ranges::sort(by_offset, {},
                      [](const auto* tensor) { return std::pair(tensor->begin, tensor->end); });
    const auto data = bytes.subspan(length_bytes + static_cast<std::size_t>(header_bytes));
    check_tiling(by_offset, data.size(), where);

    safetensors_content out;
    out.metadata = std::move(reader.metadata);
    for (auto& [name, tensor] : reader.tensors) {
        tensor.entry.data = data.subspan(static_cast<std::size_t>(tensor.begin),
                                         static_cast<std::size_t>(tensor.end - tensor.begin));
        out.entries.emplace(name, std::move(tensor.entry));
    }
    return out;
}

safetensors_file safetensors_file::open(const std::filesystem::path& path) {
    const file_descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.get() < 0) throw_system_error("open", path);
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) throw_system_error("stat", path);
    require<io_error>(S_ISREG(status.st_mode), "'", path.string(), "' is not a regular file");

    safetensors_file out;
    out.path_ = path;
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size > 0) {
        void* memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
        if (memory == MAP_FAILED) throw_system_error("map", path);
        out.mapped_ = {static_cast<const std::byte*>(memory), size};
    }
    out.content_ = parse_safetensors(out.mapped_, path.string());
    return out;
}

safetensors_file::safetensors_file(safetensors_file&& other) noexcept
    : path_(std::move(other.path_)),
      mapped_(std::exchange(other.mapped_, {})),
      content_(std::exchange(other.content_, {})) {}

safetensors_file& safetensors_file::operator=(safetensors_file&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(mapped_, other.mapped_);
    std::swap(content_, other.content_);
    return *this;
}

safetensors_file::~safetensors_file() {
    unmap(mapped_);
}

std::vector<std::string_view> safetensors_file::names() const {
    std::vector<std::string_view> out;
    for (const auto& [name, entry] : content_.entries) out.push_back(name);
    return out;
}

const safetensors_entry* safetensors_file::find(std::string_view name) const {
    const auto found = content_.entries.find(name);
    return found == content_.entries.end() ? nullptr : &found->second;
}

const safetensors_entry& safetensors_file::at(std::string_view name) const {
    const safetensors_entry* entry = find(name);
    require<io_error>(entry, path_.string(), ": there is no tensor ", in_quotes(name),
                      " among its ", content_.entries.size());
    return *entry;
}

void safetensors_writer::add(std::string name, dtype type, std::vector<index_t> shape,
                             std::span<const std::byte> data) {
    add({std::move(name), format_of(type).name, std::move(shape), data});
}

void safetensors_writer::add(safetensors_entry entry) {
    require(entry.name != metadata_key, "the name '", metadata_key, "' is reserved");
    static_cast<void>(json_string(entry.name));
    const format_info* format = find_format(entry.format);
    require(format, "tensor ", in_quotes(entry.name), " has the unknown dtype ",
            in_quotes(entry.format));
    entry.format = format->name;
    const auto bytes = size_in_bytes(entry.shape, format->bits);
    require(bytes && *bytes == entry.data.size(), "tensor ", in_quotes(entry.name), " of shape ",
            text_of(entry.shape), " and dtype ", entry.format, " does not have ", entry.data.size(),
            " bytes");
    const std::string name = entry.name;
    require(content_.entries.try_emplace(name, std::move(entry)).second, "tensor ", in_quotes(name),
            " was added before");
}

void safetensors_writer::set_metadata(std::string key, std::string value) {
    static_cast<void>(json_string(key));
    static_cast<void>(json_string(value));
    content_.metadata.insert_or_assign(std::move(key), std::move(value));
}

// Wide elements first, as the format's own writer does: every tensor is then aligned.
std::vector<const safetensors_entry*> safetensors_writer::in_file_order() const {
    std::vector<const safetensors_entry*> order;
    for (const auto& [name, entry] : content_.entries) order.push_back(&entry);
    std::ranges::stable_sort(order, std::greater{}, [](const safetensors_entry* entry) {
        return find_format(entry->format)->bits;
    });
    return order;
}

std::string safetensors_writer::header(const std::vector<const safetensors_entry*>& order) const {
    std::string out = "{";
    if (!content_.metadata.empty()) {
        out += concat(json_string(std::string(metadata_key)), ":{");
        for (const auto& [key, value] : content_.metadata) {
            if (out.back() != '{') out += ',';
            out += concat(json_string(key), ':', json_string(value));
        }
        out += '}';
    }
    std::uint64_t offset = 0;
    for (const auto* entry : order) {
        if (out.size() > 1) out += ',';
        out += concat(json_string(entry->name), ":{\"dtype\":\"", entry->format, "\",\"shape\":[");
        for (const index_t extent : entry->shape) {
            if (out.back() != '[') out += ',';
            out += std::to_string(extent);
        }
        out += concat("],\"data_offsets\":[", offset, ',', offset + entry->data.size(), "]}");
        offset += entry->data.size();
    }
    out += '}';
    out.resize((out.size() + length_bytes - 1) / length_bytes * length_bytes, ' ');
    require(out.size() <= max_header_bytes, "a header of ", out.size(),
            " bytes is over the format's limit of ", max_header_bytes);
    return out;
}

std::vector<std::byte> safetensors_writer::bytes() const {
    const auto order = in_file_order();
    const std::string text = header(order);
    std::size_t total = length_bytes + text.size();
    for (const auto* entry : order) total += entry->data.size();
    std::vector<std::byte> out(total);
    std::byte* next = std::ranges::copy(length_prefix(text), out.data()).out;
    next = std::ranges::copy(std::as_bytes(std::span(text)), next).out;
    for (const auto* entry : order) next = std::ranges::copy(entry->data, next).out;
    return out;
}

void safetensors_writer::write(const std::filesystem::path& path) const {
    static std::atomic<unsigned> counter = 0;
    const auto order = in_file_order();
    const std::string text = header(order);
    std::filesystem::path temporary = path;
    temporary += concat(".tmp.", ::getpid(), '.', counter++);

    file_descriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (file.get() < 0) throw_system_error("create", temporary);
    try {
        write_all(file.get(), length_prefix(text), temporary);
        write_all(file.get(), std::as_bytes(std::span(text)), temporary);
        for (const auto* entry : order) write_all(file.get(), entry->data, temporary);
        if (::fsync(file.get()) != 0) throw_system_error("flush", temporary);
        if (file.close() != 0) throw_system_error("close", temporary);
        if (::rename(temporary.c_str(), path.c_str()) != 0) throw_system_error("replace", path);
    } catch (...) {
        ::unlink(temporary.c_str());
        throw;
    }
}

}  // namespace latpar::inline v0
