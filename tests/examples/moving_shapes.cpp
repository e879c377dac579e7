// SPDX-License-Identifier: Apache-2.0
// Tests of examples/models/moving_shapes: with small weights made here, and with the real ones.
#include <latpar/core/memory.hpp>

#include <models/moving_shapes/decoder.hpp>
#include <models/moving_shapes/prompt.hpp>
#include <support/catch.hpp>
#include <support/temporary.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

using latpar::index_t;
using latpar::safetensors_file;
using moving_shapes::decoder;
using moving_shapes::prompt_reader;

namespace {

/// Weights with eight words, two shapes, vectors of four and blocks of 2x2 pixels.
struct small_weights {
    std::string prompt = R"({"words": ["<null>", "<none>", "red", "blue", "circle", "star",
        "night", "day"], "colours": [2, 2], "kinds": [4, 2], "backgrounds": [6, 2],
        "slots": ["object 1", "object 2", "background"], "objects": 2, "absent": 1, "dropped": 0})";
    std::string latent = R"({"block": 2, "channels": 3})";
    std::vector<float> tokens = random(8 * 4, 1);
    std::vector<float> slots = random(3 * 4, 2);
    std::vector<float> weight = random(12 * 3, 3);
    std::vector<float> bias = random(12, 4);

    static std::vector<float> random(std::size_t count, unsigned seed) {
        std::minstd_rand engine(seed);
        std::vector<float> out(count);
        for (float& value : out) value = float(engine() % 2001) / 1000 - 1;
        return out;
    }

    safetensors_file write(const temporary_directory& folder) const {
        const auto path = folder / "small.safetensors";
        latpar::safetensors_writer file;
        const auto add = [&](const char* name, std::vector<index_t> shape,
                             const std::vector<float>& values) {
            file.add(name, std::move(shape), std::span(values));
        };
        add("prompt.tokens", {index_t(tokens.size()) / 4, 4}, tokens);
        add("prompt.slots", {index_t(slots.size()) / 4, 4}, slots);
        add("latent.decode.weight", {index_t(weight.size()) / 3, 3}, weight);
        add("latent.decode.bias", {index_t(bias.size())}, bias);
        file.set_metadata("prompt", prompt);
        file.set_metadata("latent", latent);
        file.write(path);
        return safetensors_file::open(path);
    }
};

prompt_reader small_reader() {
    const temporary_directory folder;
    return prompt_reader::load(small_weights().write(folder));
}

using slots = prompt_reader::slots;

}  // namespace

TEST_CASE("a prompt becomes the words of each slot") {
    const prompt_reader reader = small_reader();
    const slots both{{2, 4}, {3, 5}, {6}};
    CHECK(reader.parse("red circle, blue star, night") == both);
    CHECK(reader.parse("  Red CIRCLE ,blue\tstar,, night,") == both);
    CHECK(reader.parse("circle red, star blue, night") == both);
    CHECK(reader.parse("night, red circle, blue star") == both);
    CHECK(reader.parse("blue star, red circle, night") == slots{{3, 5}, {2, 4}, {6}});
    CHECK(reader.parse("blue circle") == slots{{3, 4}, {1}, {0}});
    CHECK(reader.parse("red star, red star, day") == slots{{2, 5}, {2, 5}, {7}});
}

TEST_CASE("what is no prompt is refused with the reason and what is known") {
    const prompt_reader reader = small_reader();
    const auto refused = [&](const char* prompt, const char* reason) {
        CAPTURE(prompt);
        CHECK_THROWS_AS(reader.parse(prompt), latpar::usage_error);
        CHECK_THROWS_WITH(reader.parse(prompt),
                          ContainsSubstring(reason) &&
                              ContainsSubstring("Colours: red, blue. Shapes: circle, star. "
                                                "Backgrounds: night, day."));
        CHECK_THROWS_AS(reader.embed(prompt), latpar::usage_error);
    };
    refused("red dog", "word 'dog' is not known");
    refused("red circle, <null>", "word '<null>' is not known");
    refused("red circle, <none>", "word '<none>' is not known");
    refused("", "the prompt '' asks for no shape");
    refused(" , ,", "asks for no shape");
    refused("night", "the prompt 'night' asks for no shape");
    refused("circle, night", "'circle' is a shape without a colour");
    refused("red, night", "'red' is a colour without a shape");
    refused("red blue", "'red blue' is a colour without a shape");
    refused("red blue circle", "'red blue circle' is more than one colour and one shape");
    refused("red circle blue star", "is there a comma missing?");
    refused("red circle, night, day", "two backgrounds, 'night' and 'day'");
    refused("red circle night", "the background 'night' stands between commas of its own");
    refused("night day, red circle", "not in 'night day'");
    refused("red circle, blue circle, red star", "the prompt asks for 3 shapes");
    CHECK_THAT(reader.help(), ContainsSubstring("1 to 2 shapes and at most one background"));
}

TEST_CASE("an embedding is the slot's vector plus those of its words") {
    const small_weights weights;
    const prompt_reader reader = small_reader();
    const auto [conditional, unconditional] = reader.embed("blue star, day");
    REQUIRE(conditional.view().extents == std::array<index_t, 3>{1, 3, 4});
    REQUIRE(unconditional.view().extents == std::array<index_t, 3>{1, 3, 4});
    const auto with = conditional.elements<float>();
    const auto without = unconditional.elements<float>();
    for (std::size_t i = 0; i < 4; ++i) {
        CHECK(with[i] == weights.slots[i] + (weights.tokens[12 + i] + weights.tokens[20 + i]));
        CHECK(with[4 + i] == weights.slots[4 + i] + weights.tokens[4 + i]);
        CHECK(with[8 + i] == weights.slots[8 + i] + weights.tokens[28 + i]);
        for (std::size_t slot = 0; slot < 3; ++slot) {
            CHECK(without[4 * slot + i] == weights.slots[4 * slot + i] + weights.tokens[i]);
        }
    }
}

TEST_CASE("a latent is decoded block by block, whatever its strides") {
    const temporary_directory folder;
    const small_weights weights;
    const decoder decode = decoder::load(weights.write(folder));
    CHECK(decode.channels() == 3);
    CHECK(decode.block() == 2);
    const auto values = small_weights::random(3 * 2 * 3 * 5, 9);
    auto z = latpar::make_view<const float, 5>(values.data(), {1, 3, 2, 3, 5});
    SECTION("dense") {}
    SECTION("channels last") {
        z.strides = {90, 1, 45, 15, 3};
    }

    const media::rgb_video video = decode.decode(z);
    REQUIRE(video.frames == 2);
    REQUIRE(video.height == 6);
    REQUIRE(video.width == 10);
    REQUIRE(video.data.size() == 2 * 6 * 10 * 3);
    int clipped = 0;
    for (index_t t = 0; t < 2; ++t) {
        for (index_t y = 0; y < 6; ++y) {
            for (index_t x = 0; x < 10; ++x) {
                for (index_t c = 0; c < 3; ++c) {
                    const auto row = std::size_t((y % 2 * 2 + x % 2) * 3 + c);
                    double value = weights.bias[row];
                    for (std::size_t k = 0; k < 3; ++k) {
                        const auto at = z.offset({0, index_t(k), t, y / 2, x / 2});
                        value += double(weights.weight[row * 3 + k]) * values[std::size_t(at)];
                    }
                    clipped += std::abs(value) > 1;
                    const double level = (std::clamp(value, -1.0, 1.0) + 1) * 127.5;
                    const auto found = double(video.frame(t)[std::size_t((y * 10 + x) * 3 + c)]);
                    // Half a level for rounding, and a little for float32.
                    REQUIRE(std::abs(found - level) < 0.5001);
                }
            }
        }
    }
    CHECK(clipped > 0);
}

TEST_CASE("a latent that the decoder was not made for is refused") {
    const temporary_directory folder;
    const decoder decode = decoder::load(small_weights().write(folder));
    CHECK_THROWS_AS(decode.decode(latpar::latent({1, 4, 1, 1, 1}).view()), latpar::usage_error);
    CHECK_THROWS_WITH(decode.decode(latpar::latent({2, 3, 1, 1, 1}).view()),
                      ContainsSubstring("2 samples and 3 channels"));
    CHECK_THROWS_WITH(decode.decode(latpar::latent({1, 3, 1, 1, 1}, latpar::dtype::bf16).view()),
                      ContainsSubstring("bf16"));
    auto elsewhere = latpar::const_latent_view{};
    elsewhere.space = latpar::memory_space::cuda;
    CHECK_THROWS_WITH(decode.decode(elsewhere), ContainsSubstring("not in cuda memory"));
}

TEST_CASE("weights that do not fit together are refused") {
    const temporary_directory folder;
    small_weights weights;
    const auto prompt_refused = [&](const char* reason) {
        const auto file = weights.write(folder);
        CHECK_THROWS_AS(prompt_reader::load(file), latpar::io_error);
        CHECK_THROWS_WITH(prompt_reader::load(file),
                          ContainsSubstring("small.safetensors") && ContainsSubstring(reason));
    };
    const auto decoder_refused = [&](const char* reason) {
        const auto file = weights.write(folder);
        CHECK_THROWS_AS(decoder::load(file), latpar::io_error);
        CHECK_THROWS_WITH(decoder::load(file),
                          ContainsSubstring("small.safetensors") && ContainsSubstring(reason));
    };
    const auto replace = [](std::string& text, const std::string& from, const std::string& to) {
        text.replace(text.find(from), from.size(), to);
    };
    SECTION("no JSON") {
        weights.prompt = weights.latent = "{";
        prompt_refused("metadata 'prompt' must be a JSON object, not {");
        decoder_refused("metadata 'latent' must be a JSON object, not {");
    }
    SECTION("no JSON object") {
        weights.latent = "[2, 3]";
        decoder_refused("must be a JSON object, not [2, 3]");
    }
    SECTION("a missing value") {
        replace(weights.prompt, "objects", "things");
        prompt_refused("metadata value 'objects'");
        weights.latent = R"({"block": 2})";
        decoder_refused("metadata value 'channels'");
    }
    SECTION("a value of another type") {
        weights.latent = R"({"block": "two", "channels": 3})";
        decoder_refused("metadata value 'block'");
    }
    SECTION("a class of words that reaches too far") {
        replace(weights.prompt, "[6, 2]", "[6, 3]");
        prompt_refused("'backgrounds' names words 6 to 9 of 8");
    }
    SECTION("a word that does not exist") {
        replace(weights.prompt, "\"absent\": 1", "\"absent\": 8");
        prompt_refused("'absent' names word 8 of 8");
    }
    SECTION("too few slots") {
        replace(weights.prompt, "\"objects\": 2", "\"objects\": 3");
        prompt_refused("has 4 slots, not 3");
    }
    SECTION("tables of another size") {
        weights.slots.resize(8);
        prompt_refused("prompt.slots must be [3, 4]");
        weights.tokens.resize(28);
        prompt_refused("prompt.tokens must have a row for each of 8 words");
    }
    SECTION("a decoder of another size") {
        weights.bias.resize(11);
        decoder_refused("latent.decode.bias must be [12]");
        weights.weight.resize(33);
        decoder_refused("latent.decode.weight must be [12, 3]");
        weights.latent = R"({"block": 0, "channels": 3})";
        decoder_refused("blocks of 0 pixels");
    }
}

TEST_CASE("the real weights give what their recording says") {
    const std::filesystem::path folder = LATPAR_MOVING_SHAPES_DIR;
    const auto weights_path = folder / "moving_shapes.safetensors";
    const auto recording_path = folder / "sample_fixture.safetensors";
    const auto weights = safetensors_file::open(weights_path);
    const auto recording = safetensors_file::open(recording_path);

    const auto reader = prompt_reader::load(weights);
    const auto [conditional, unconditional] = reader.embed(recording.metadata().at("prompt"));
    const auto check_text = [&](const latpar::tensor<3>& text, const char* name) {
        const auto& entry = recording.at(name);
        const auto found = text.elements<float>();
        const auto wanted = to_float32(entry);
        CAPTURE(name);
        REQUIRE(entry.shape ==
                std::vector<index_t>{1, text.view().extents[1], text.view().extents[2]});
        REQUIRE(found.size() == wanted.size());
        float worst = 0;
        for (std::size_t i = 0; i < wanted.size(); ++i) {
            worst = std::max(worst, std::abs(found[i] - wanted[i]));
        }
        // Sums of three floats of size one, in whatever order.
        CHECK(worst < 1e-6f);
    };
    check_text(conditional, "text_conditional");
    check_text(unconditional, "text_unconditional");

    const auto& latent_entry = recording.at("final_latent");
    const auto latent = to_float32(latent_entry);
    const auto& video_entry = recording.at("final_video");
    const auto wanted = to_float32(video_entry);
    REQUIRE(latent_entry.shape.size() == 5);
    std::array<index_t, 5> extents{};
    std::ranges::copy(latent_entry.shape, extents.begin());
    const auto video = decoder::load(weights).decode(latpar::make_view(latent.data(), extents));
    REQUIRE(video_entry.shape.size() == 4);
    REQUIRE(video_entry.shape[0] <= video.frames);
    REQUIRE(video_entry.shape[2] == video.height);
    REQUIRE(video_entry.shape[3] == video.width);
    const index_t plane = video.height * video.width;
    double worst = 0;
    for (index_t t = 0; t < video_entry.shape[0]; ++t) {
        for (index_t i = 0; i < plane * 3; ++i) {
            const double level = (wanted[std::size_t((t * 3 + i % 3) * plane + i / 3)] + 1) * 127.5;
            worst = std::max(worst, std::abs(video.frame(t)[std::size_t(i)] - level));
        }
    }
    // Half a level for rounding, and a little for the order of the sums.
    CHECK(worst < 0.501);
}
