// SPDX-License-Identifier: Apache-2.0
// Tests of the safetensors reader's strictness and of the writer.
#include <latpar/io/safetensors.hpp>

#include <support/catch.hpp>
#include <support/recorded.hpp>
#include <support/reference.hpp>
#include <unistd.h>

#include <array>
#include <fstream>
#include <limits>
#include <string>

using namespace latpar;

namespace {

std::vector<std::byte> file_with_length(std::uint64_t length, const std::string& header,
                                        std::size_t data_bytes) {
    std::vector<std::byte> out(8 + header.size() + data_bytes);
    std::memcpy(out.data(), &length, 8);
    std::memcpy(out.data() + 8, header.data(), header.size());
    for (std::size_t i = 0; i < data_bytes; ++i) {
        out[8 + header.size() + i] = static_cast<std::byte>(i);
    }
    return out;
}

std::vector<std::byte> file_of(const std::string& header, std::size_t data_bytes = 0) {
    return file_with_length(header.size(), header, data_bytes);
}

// Parses, and gives the refusal's message; empty if the file was accepted.
std::string refusal(const std::vector<std::byte>& bytes) {
    try {
        static_cast<void>(parse_safetensors(bytes, "a file"));
        return {};
    } catch (const io_error& problem) {
        return problem.what();
    }
}

std::string described(const std::string& dtype, const std::string& shape,
                      const std::string& offsets) {
    return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}";
}

const std::string four_bytes = described("U8", "[4]", "[0,4]");

// Removes its file at the end of the test.
struct temporary_file {
    explicit temporary_file(const std::string& name)
        : folder(std::filesystem::temp_directory_path() /
                 ("latpar_safetensors_" + std::to_string(::getpid()))),
          path(folder / name) {
        std::filesystem::create_directories(folder);
    }
    temporary_file(const temporary_file&) = delete;
    temporary_file& operator=(const temporary_file&) = delete;
    ~temporary_file() { std::filesystem::remove_all(folder); }
    std::filesystem::path folder;
    std::filesystem::path path;
};

}  // namespace

TEST_CASE("a well-formed file is read") {
    const auto bytes = file_of(R"({"__metadata__":{"a":"b","\u00e9":""},"x":)" +
                                   described("F32", "[1,2]", "[0,8]") + R"(,"empty":)" +
                                   described("F64", "[0,3]", "[8,8]") + R"(,"scalar":)" +
                                   described("I64", "[]", "[8,16]") + "}   ",
                               16);
    const auto content = parse_safetensors(bytes);
    REQUIRE(content.entries.size() == 3);
    const auto& x = content.entries.at("x");
    CHECK(x.name == "x");
    CHECK(x.format == "F32");
    CHECK(x.type() == dtype::f32);
    CHECK(x.shape == std::vector<index_t>{1, 2});
    CHECK(x.data.size() == 8);
    CHECK(x.data[7] == std::byte{7});
    CHECK(content.entries.at("empty").elements() == 0);
    CHECK(content.entries.at("empty").values<double>().empty());
    CHECK(content.entries.at("scalar").elements() == 1);
    CHECK(content.entries.at("scalar").values<std::int64_t>().at(0) == 0x0f0e0d0c0b0a0908);
    CHECK(content.metadata.at("a") == "b");
    CHECK(content.metadata.at("\xc3\xa9").empty());
    CHECK(parse_safetensors(file_of("{}")).entries.empty());
}

TEST_CASE("the header has at most 100 MB and lies within the file") {
    CHECK_THAT(refusal({}), ContainsSubstring("too few"));
    CHECK_THAT(refusal(std::vector<std::byte>(7)), ContainsSubstring("too few"));
    CHECK_THAT(refusal(file_with_length(0, "", 0)), ContainsSubstring("begin with '{'"));
    CHECK_THAT(refusal(file_with_length(3, "{}", 0)), ContainsSubstring("outside the file"));
    CHECK_THAT(refusal(file_with_length(100'000'001, "{}", 0)), ContainsSubstring("100000000"));
    CHECK_THAT(refusal(file_with_length(std::numeric_limits<std::uint64_t>::max(), "{}", 0)),
               ContainsSubstring("over the limit"));
    std::string longest(100'000'000, ' ');
    longest.replace(0, 2, "{}");
    CHECK(refusal(file_of(longest)).empty());
    CHECK_THAT(refusal(file_of(longest + ' ')), ContainsSubstring("over the limit"));
}

TEST_CASE("the header is JSON in UTF-8 that begins with a brace") {
    CHECK_THAT(refusal(file_of(" {}")), ContainsSubstring("begin with '{'"));
    CHECK_THAT(refusal(file_of("\xef\xbb\xbf{}")), ContainsSubstring("begin with '{'"));
    CHECK_THAT(refusal(file_of("[]")), ContainsSubstring("begin with '{'"));
    CHECK_THAT(refusal(file_of("{")), ContainsSubstring("end with '}'"));
    CHECK_THAT(refusal(file_of("{\"x}")), ContainsSubstring("not valid JSON"));
    CHECK_THAT(refusal(file_of("{/**/}")), ContainsSubstring("not valid JSON"));
    CHECK_THAT(refusal(file_of(R"({"x":)" + four_bytes + ",}", 4)),
               ContainsSubstring("not valid JSON"));
    for (const std::string bad : {"\xff", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80"}) {
        CHECK_THAT(refusal(file_of("{\"" + bad + "\":" + four_bytes + "}", 4)),
                   ContainsSubstring("UTF-8"));
        CHECK_THAT(refusal(file_of("{\"__metadata__\":{\"a\":\"" + bad + "\"}}")),
                   ContainsSubstring("UTF-8"));
    }
    CHECK_THAT(refusal(file_of(R"({"\ud800":)" + four_bytes + "}", 4)),
               ContainsSubstring("not valid JSON"));
}

TEST_CASE("no key appears twice, escaped or not") {
    CHECK_THAT(refusal(file_of("{\"x\":" + four_bytes + ",\"x\":" + four_bytes + "}", 4)),
               ContainsSubstring("'x' appears twice"));
    CHECK_THAT(refusal(file_of(R"({"x":)" + four_bytes + R"(,"\u0078":)" + four_bytes + "}", 4)),
               ContainsSubstring("'x' appears twice"));
    CHECK_THAT(refusal(file_of(R"({"a/b":)" + four_bytes + R"(,"a\/b":)" + four_bytes + "}", 4)),
               ContainsSubstring("'a/b' appears twice"));
    CHECK_THAT(refusal(file_of(R"({"__metadata__":{},"__metadata__":{}})")),
               ContainsSubstring("'__metadata__' appears twice"));
    CHECK_THAT(refusal(file_of(R"({"__metadata__":{},"\u005f_metadata__":{}})")),
               ContainsSubstring("'__metadata__' appears twice"));
    CHECK_THAT(refusal(file_of(R"({"__metadata__":{"k":"1","\u006b":"2"}})")),
               ContainsSubstring("metadata key 'k' appears twice"));
    for (const std::string again :
         {R"("dtype":"U8")", R"("\u0064type":"U8")", R"("shape":[4])", R"("data_offsets":[0,4])"}) {
        const std::string twice =
            R"({"x":)" + four_bytes.substr(0, four_bytes.size() - 1) + "," + again + "}}";
        CHECK_THAT(refusal(file_of(twice, 4)), ContainsSubstring("twice"));
    }
}

TEST_CASE("tensors do not overlap") {
    const auto header = [](const std::string& second) {
        return "{\"x\":" + four_bytes + ",\"y\":" + described("U8", "[4]", second) + "}";
    };
    CHECK(refusal(file_of(header("[4,8]"), 8)).empty());
    CHECK_THAT(refusal(file_of(header("[3,7]"), 7)), ContainsSubstring("overlaps"));
    CHECK_THAT(refusal(file_of(header("[0,4]"), 4)), ContainsSubstring("overlaps"));
    CHECK_THAT(refusal(file_of(
                   "{\"x\":" + four_bytes + ",\"y\":" + described("U8", "[0]", "[2,2]") + "}", 4)),
               ContainsSubstring("overlaps"));
}

TEST_CASE("tensors leave no hole") {
    CHECK_THAT(refusal(file_of("{\"x\":" + described("U8", "[3]", "[1,4]") + "}", 4)),
               ContainsSubstring("a hole from 0 to 1"));
    CHECK_THAT(refusal(file_of(
                   "{\"x\":" + four_bytes + ",\"y\":" + described("U8", "[2]", "[6,8]") + "}", 8)),
               ContainsSubstring("a hole from 4 to 6"));
    CHECK_THAT(refusal(file_of("{\"x\":" + four_bytes + "}", 5)),
               ContainsSubstring("the tensors end at 4 but the file has 5"));
    CHECK_THAT(refusal(file_of("{}", 1)), ContainsSubstring("end at 0"));
}

TEST_CASE("no offset lies outside the file") {
    CHECK_THAT(refusal(file_of("{\"x\":" + four_bytes + "}", 3)),
               ContainsSubstring("ends at 4, outside the file"));
    CHECK_THAT(
        refusal(file_of("{\"x\":" + described("U8", "[4]", "[0,18446744073709551615]") + "}", 4)),
        ContainsSubstring("outside the file"));
    CHECK_THAT(refusal(file_of("{\"x\":" + described("U8", "[4]", "[4,0]") + "}", 4)),
               ContainsSubstring("before it begins"));
}

TEST_CASE("sizes do not overflow") {
    for (const std::string shape :
         {"[4294967296,4294967296]", "[9223372036854775807,2]", "[9223372036854775808]",
          "[18446744073709551615]", "[3037000500,3037000500,1]", "[9223372036854775807,9,0]",
          "[2305843009213693952]"}) {
        INFO(shape);
        CHECK_THAT(refusal(file_of("{\"x\":" + described("F64", shape, "[0,0]") + "}")),
                   ContainsSubstring("overflow"));
    }
}

TEST_CASE("nothing but spaces follows the JSON") {
    const std::string header = "{\"x\":" + four_bytes + "}";
    CHECK(refusal(file_of(header + "      ", 4)).empty());
    for (const std::string& after :
         {std::string(1, '\0'), std::string("\0  ", 3), std::string("  \0", 3), std::string("x"),
          std::string("{}"), std::string("}"), std::string(",{}"), std::string("\n"),
          std::string("\t"), std::string(" // }"), std::string("\0}", 2)}) {
        INFO(after.size() << " bytes, the first " << int{after[0]});
        CHECK_FALSE(refusal(file_of(header + after, 4)).empty());
    }
    CHECK_THAT(refusal(file_of(header + std::string(1, '\0'), 4)), ContainsSubstring("NUL"));
}

TEST_CASE("sizes match dtype and shape") {
    struct known_dtype {
        std::string name;
        std::size_t bytes_of_four;
        bool readable;
    };
    const std::vector<known_dtype> all{
        {"F64", 32, true},     {"F32", 16, true},         {"F16", 8, true},
        {"BF16", 8, true},     {"I64", 32, true},         {"I32", 16, true},
        {"I16", 8, false},     {"I8", 4, false},          {"U8", 4, true},
        {"U16", 8, false},     {"U32", 16, false},        {"U64", 32, false},
        {"BOOL", 4, false},    {"F8_E4M3", 4, false},     {"F8_E5M2", 4, false},
        {"F8_E8M0", 4, false}, {"F8_E4M3FNUZ", 4, false}, {"F8_E5M2FNUZ", 4, false},
        {"F6_E2M3", 3, false}, {"F6_E3M2", 3, false},     {"F4", 2, false},
        {"C64", 32, false}};
    for (const known_dtype& known : all) {
        INFO(known.name);
        const auto bytes = [&](std::size_t size) {
            return file_of(
                "{\"x\":" + described(known.name, "[2,2]", "[0," + std::to_string(size) + "]") +
                    "}",
                size);
        };
        CHECK_THAT(refusal(bytes(known.bytes_of_four + 1)), ContainsSubstring("needs"));
        CHECK_THAT(refusal(bytes(known.bytes_of_four - 1)), ContainsSubstring("needs"));
        const auto good = bytes(known.bytes_of_four);
        const auto content = parse_safetensors(good);
        const auto& entry = content.entries.at("x");
        CHECK(entry.format == known.name);
        if (known.readable) {
            CHECK_NOTHROW(entry.type());
        } else {
            CHECK_THROWS_AS(entry.type(), io_error);
            CHECK_THROWS_WITH(to_float32(entry), ContainsSubstring(known.name));
        }
    }
    CHECK_THAT(refusal(file_of("{\"x\":" + described("F4", "[3]", "[0,2]") + "}", 2)),
               ContainsSubstring("no whole number of bytes"));
    CHECK_THAT(refusal(file_of("{\"x\":" + described("F7", "[4]", "[0,4]") + "}", 4)),
               ContainsSubstring("unknown dtype 'F7'"));
    CHECK_THAT(refusal(file_of("{\"x\":" + described("u8", "[4]", "[0,4]") + "}", 4)),
               ContainsSubstring("unknown dtype 'u8'"));
}

TEST_CASE("numbers are unsigned integers") {
    for (const std::string number : {"-4", "-0", "4.0", "4e0", "1e400", "18446744073709551616",
                                     "true", "null", "\"4\"", "[4]", "{}"}) {
        INFO(number);
        CHECK_FALSE(
            refusal(file_of("{\"x\":" + described("U8", "[" + number + "]", "[0,4]") + "}", 4))
                .empty());
        CHECK_FALSE(
            refusal(file_of("{\"x\":" + described("U8", "[4]", "[0," + number + "]") + "}", 4))
                .empty());
    }
    for (const std::string offsets : {"[]", "[0]", "[0,4,4]", "4", "null", "\"0,4\""}) {
        INFO(offsets);
        CHECK_FALSE(refusal(file_of("{\"x\":" + described("U8", "[4]", offsets) + "}", 4)).empty());
    }
}

TEST_CASE("the header has the format's structure and no more") {
    for (const std::string header :
         {R"({"x":1})", R"({"x":null})", R"({"x":[]})", R"({"x":"U8"})", R"({"x":{}})",
          R"({"x":{"dtype":"U8","shape":[4]}})", R"({"x":{"dtype":"U8","data_offsets":[0,4]}})",
          R"({"x":{"shape":[4],"data_offsets":[0,4]}})",
          R"({"x":{"dtype":8,"shape":[4],"data_offsets":[0,4]}})",
          R"({"x":{"dtype":"U8","shape":4,"data_offsets":[0,4]}})",
          R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"more":1}})",
          R"({"x":{"dtype":["U8"],"shape":[4],"data_offsets":[0,4]}})", R"({"__metadata__":1})",
          R"({"__metadata__":{"a":1}})", R"({"__metadata__":{"a":{}}})",
          R"({"__metadata__":{"a":null}})"}) {
        INFO(header);
        CHECK_FALSE(refusal(file_of(header, 4)).empty());
    }
    const std::string deep = "{\"x\":" + std::string(1'000'000, '[') + "}";
    CHECK_THAT(refusal(file_of(deep)), ContainsSubstring("an array"));
}

TEST_CASE("a refusal names the file and stays short") {
    const std::string name(100'000, 'n');
    const std::string message = refusal(file_of("{\"" + name + "\":" + four_bytes + "}", 3));
    CHECK(message.starts_with("a file: "));
    CHECK(message.size() < 1000);
    const temporary_file file("short");
    std::ofstream(file.path).close();
    CHECK_THROWS_WITH(safetensors_file::open(file.path), ContainsSubstring(file.path.string()));
    CHECK_THROWS_WITH(safetensors_file::open(file.path.string() + ".missing"),
                      ContainsSubstring("No such file"));
    CHECK_THROWS_WITH(safetensors_file::open(file.folder), ContainsSubstring("not a regular file"));
}

TEST_CASE("what is written is read back") {
    const std::array<float, 6> wide{0, 1, -2, 3.5f, 1e30f, -1e-30f};
    const std::array<std::uint8_t, 3> narrow{1, 2, 255};
    const std::array<bfloat16, 2> half{to_bfloat16(1.5f), to_bfloat16(-3)};
    latent z({1, 1, 1, 2, 3});
    std::ranges::copy(wide, z.elements<float>().begin());

    safetensors_writer writer;
    writer.add<std::uint8_t>("narrow", {3}, narrow);
    writer.add<bfloat16>("half \"quoted\" \xc3\xa9", {2}, half);
    writer.add<float>("wide", {2, 3}, wide);
    writer.add("z", z.view());
    writer.add({"foreign", "F8_E4M3", {3}, std::as_bytes(std::span(narrow))});
    writer.set_metadata("config", "{\"a\": 1}\n");

    const temporary_file file("round_trip.safetensors");
    writer.write(file.path);
    safetensors_file first = safetensors_file::open(file.path);
    const safetensors_file read = std::move(first);
    CHECK(read.names() == std::vector<std::string_view>{"foreign", "half \"quoted\" \xc3\xa9",
                                                        "narrow", "wide", "z"});
    CHECK(read.at("wide").values<float>() == std::vector<float>(wide.begin(), wide.end()));
    CHECK(read.at("wide").shape == std::vector<index_t>{2, 3});
    CHECK(read.at("z").shape == std::vector<index_t>{1, 1, 1, 2, 3});
    CHECK(read.at("z").values<float>() == std::vector<float>(wide.begin(), wide.end()));
    CHECK(read.at("narrow").values<std::uint8_t>() ==
          std::vector<std::uint8_t>(narrow.begin(), narrow.end()));
    CHECK(read.at("foreign").format == "F8_E4M3");
    CHECK(to_float32(read.at("half \"quoted\" \xc3\xa9")) == std::vector<float>{1.5f, -3});
    CHECK(read.metadata().at("config") == "{\"a\": 1}\n");
    CHECK(read.find("missing") == nullptr);
    CHECK_THROWS_WITH(read.at("missing"), ContainsSubstring("no tensor 'missing'"));
    CHECK_THROWS_WITH(read.at("wide").values<double>(), ContainsSubstring("read as f64"));

    // Every tensor is aligned to its elements, the data begin at a multiple of 8.
    const auto bytes = writer.bytes();
    std::uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), 8);
    CHECK(header_bytes % 8 == 0);
    for (const auto& [name, entry] : read.entries()) {
        const auto address = reinterpret_cast<std::uintptr_t>(entry.data.data());
        if (entry.format == "F32") CHECK(address % 4 == 0);
        if (entry.format == "BF16") CHECK(address % 2 == 0);
    }
    std::ifstream stream(file.path, std::ios::binary);
    const std::string on_disk((std::istreambuf_iterator<char>(stream)), {});
    CHECK(on_disk == std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

TEST_CASE("writing replaces a file as a whole and leaves nothing behind") {
    const temporary_file file("replaced.safetensors");
    const std::array<float, 1> one{1};
    const std::array<float, 1> two{2};
    safetensors_writer before;
    before.add<float>("x", {1}, one);
    before.write(file.path);
    const safetensors_file old = safetensors_file::open(file.path);
    safetensors_writer after;
    after.add<float>("x", {1}, two);
    after.write(file.path);
    CHECK(old.at("x").values<float>().at(0) == 1);
    CHECK(safetensors_file::open(file.path).at("x").values<float>().at(0) == 2);

    const auto folder = file.folder / "folder.safetensors";
    std::filesystem::create_directories(folder / "inside");
    CHECK_THROWS_AS(after.write(folder), io_error);
    CHECK_THROWS_AS(after.write(file.folder / "nowhere" / "x.safetensors"), io_error);
    std::size_t left = 0;
    for ([[maybe_unused]] const auto& item : std::filesystem::directory_iterator(file.folder))
        ++left;
    CHECK(left == 2);
}

TEST_CASE("the writer refuses what the reader would") {
    safetensors_writer writer;
    const std::array<float, 2> values{};
    writer.add<float>("x", {2}, values);
    CHECK_THROWS_WITH(writer.add<float>("x", {2}, values), ContainsSubstring("added before"));
    CHECK_THROWS_WITH(writer.add<float>("__metadata__", {2}, values),
                      ContainsSubstring("reserved"));
    CHECK_THROWS_WITH(writer.add<float>("\xff", {2}, values), ContainsSubstring("UTF-8"));
    CHECK_THROWS_WITH(writer.add<float>("y", {3}, values), ContainsSubstring("[3]"));
    CHECK_THROWS_WITH(writer.add<float>("y", {-2}, values), ContainsSubstring("[-2]"));
    CHECK_THROWS_WITH(writer.add({"y", "F7", {2}, std::as_bytes(std::span(values))}),
                      ContainsSubstring("unknown dtype"));
    CHECK_THROWS_AS(writer.set_metadata("\xff", ""), usage_error);
    CHECK_THROWS_AS(writer.set_metadata("", "\xff"), usage_error);
    auto strided = make_view(values.data(), std::array<index_t, 1>{1});
    strided.extents = {2};
    strided.strides = {2};
    CHECK_THROWS_WITH(writer.add("y", strided), ContainsSubstring("contiguous"));
    CHECK(parse_safetensors(writer.bytes()).entries.size() == 1);
}

TEST_CASE("floating tensors are read as float, also unaligned") {
    const std::array<double, 2> doubles{0.1, -2};
    const std::array<float16, 2> halves{to_float16(0.1f), to_float16(65504)};
    safetensors_writer writer;
    writer.add<double>("f64", {2}, doubles);
    writer.add<float16>("f16", {2}, halves);
    std::vector<std::byte> shifted(1);
    const auto bytes = writer.bytes();
    shifted.insert(shifted.end(), bytes.begin(), bytes.end());
    const auto content = parse_safetensors(std::span(shifted).subspan(1));
    CHECK(to_float32(content.entries.at("f64")) == std::vector<float>{0.1f, -2});
    CHECK(to_float32(content.entries.at("f16")) == std::vector<float>{to_float(halves[0]), 65504});
    std::array<float, 3> wrong{};
    CHECK_THROWS_AS(to_float32(content.entries.at("f64"), wrong), usage_error);
    const std::array<std::int32_t, 1> integers{7};
    safetensors_writer other;
    other.add<std::int32_t>("i32", {1}, integers);
    const auto other_bytes = other.bytes();
    CHECK_THROWS_WITH(to_float32(parse_safetensors(other_bytes).entries.at("i32")),
                      ContainsSubstring("holds I32"));
}

TEST_CASE("every recorded file is accepted") {
    for (const std::string name :
         {"dual_paral", "latent_parallel", "para_step", "schedulers", "wan_tiny", "wan_tiny_io"}) {
        INFO(name);
        const auto file = safetensors_file::open(reference_file(name + ".safetensors"));
        CHECK_FALSE(file.entries().empty());
    }
    const auto file = safetensors_file::open(reference_file("wan_tiny_io.safetensors"));
    const latent z = recorded_latent(file, "0.latent");
    CHECK(z.view().extents == std::array<index_t, 5>{1, 16, 5, 8, 12});
    CHECK(relative_l2(z, z) == 0);
    CHECK(relative_l2(z, recorded_latent(file, "0.output")) > 0.01);
}
