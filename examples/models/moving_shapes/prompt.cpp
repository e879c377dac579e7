// SPDX-License-Identifier: Apache-2.0
// The prompts of the moving-shapes model.
#include <models/moving_shapes/metadata.hpp>
#include <models/moving_shapes/prompt.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <sstream>

namespace moving_shapes {

using namespace latpar;

namespace {

/// The words of each phrase, in lower case; phrases without words are left out.
std::vector<std::vector<std::string>> phrases_of(std::string_view prompt) {
    std::string lower(prompt);
    std::ranges::transform(lower, lower.begin(), [](unsigned char letter) {
        return static_cast<char>(std::tolower(letter));
    });
    std::vector<std::vector<std::string>> out;
    std::istringstream text(lower);
    for (std::string phrase; std::getline(text, phrase, ',');) {
        std::istringstream parts(phrase);
        std::vector<std::string> words;
        for (std::string word; parts >> word;) words.push_back(word);
        if (!words.empty()) out.push_back(std::move(words));
    }
    return out;
}

std::string joined(const std::vector<std::string>& words) {
    std::string out;
    for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
    return out;
}

}  // namespace

prompt_reader prompt_reader::load(const safetensors_file& weights) {
    const auto about = metadata_object(weights, "prompt");
    prompt_reader out;
    out.words_ = member<std::vector<std::string>>(about, "words", weights);
    const auto count = static_cast<index_t>(out.words_.size());
    const auto class_of = [&](const char* key) {
        const auto [first, size] = member<std::array<index_t, 2>>(about, key, weights);
        detail::require<io_error>(first >= 0 && size > 0 && size <= count - first, weights.path(),
                                  ": '", key, "' names words ", first, " to ", first + size, " of ",
                                  count);
        return word_class{first, size};
    };
    const auto word_at = [&](const char* key) {
        const auto word = member<index_t>(about, key, weights);
        detail::require<io_error>(word >= 0 && word < count, weights.path(), ": '", key,
                                  "' names word ", word, " of ", count);
        return word;
    };
    out.colors_ = class_of("colours");
    out.kinds_ = class_of("kinds");
    out.backgrounds_ = class_of("backgrounds");
    out.absent_ = word_at("absent");
    out.dropped_ = word_at("dropped");
    out.objects_ = member<index_t>(about, "objects", weights);
    const auto slot_count =
        static_cast<index_t>(member<std::vector<std::string>>(about, "slots", weights).size());
    detail::require<io_error>(out.objects_ > 0 && slot_count == out.objects_ + 1, weights.path(),
                              ": a prompt of ", out.objects_, " shapes and a background has ",
                              out.objects_ + 1, " slots, not ", slot_count);

    const auto& tokens = weights.at("prompt.tokens");
    const auto& slots = weights.at("prompt.slots");
    detail::require<io_error>(tokens.shape.size() == 2 && tokens.shape[0] == count, weights.path(),
                              ": prompt.tokens must have a row for each of ", count, " words");
    out.width_ = tokens.shape[1];
    detail::require<io_error>(slots.shape == std::vector{slot_count, out.width_}, weights.path(),
                              ": prompt.slots must be [", slot_count, ", ", out.width_, "]");
    out.word_vectors_ = to_float32(tokens);
    out.slot_vectors_ = to_float32(slots);
    return out;
}

std::string prompt_reader::list(word_class words) const {
    std::string out;
    for (index_t i = words.first; i < words.first + words.count; ++i) {
        out += (out.empty() ? "" : ", ") + words_[static_cast<std::size_t>(i)];
    }
    return out;
}

std::string prompt_reader::help() const {
    return detail::concat("A prompt is 1 to ", objects_, " shapes and at most one background, ",
                          "between commas: \"", words_[static_cast<std::size_t>(colors_.first)],
                          ' ', words_[static_cast<std::size_t>(kinds_.first)], ", ",
                          words_[static_cast<std::size_t>(backgrounds_.first)],
                          "\". Colours: ", list(colors_), ". Shapes: ", list(kinds_),
                          ". Backgrounds: ", list(backgrounds_), ".");
}

index_t prompt_reader::index_of(const std::string& word) const {
    const auto index = static_cast<index_t>(std::ranges::find(words_, word) - words_.begin());
    detail::require(
        colors_.contains(index) || kinds_.contains(index) || backgrounds_.contains(index),
        "the prompt's word '", word, "' is not known. ", help());
    return index;
}

prompt_reader::slots prompt_reader::parse(std::string_view prompt) const {
    slots out;
    std::optional<index_t> background;
    for (const auto& phrase : phrases_of(prompt)) {
        std::vector<index_t> colors;
        std::vector<index_t> kinds;
        for (const std::string& word : phrase) {
            const index_t index = index_of(word);
            if (backgrounds_.contains(index)) {
                detail::require(phrase.size() == 1, "the background '", word,
                                "' stands between commas of its own, not in '", joined(phrase),
                                "'. ", help());
                detail::require(!background, "the prompt asks for two backgrounds, '",
                                words_[static_cast<std::size_t>(background.value_or(0))], "' and '",
                                word, "'. ", help());
                background = index;
            } else {
                (colors_.contains(index) ? colors : kinds).push_back(index);
            }
        }
        if (colors.empty() && kinds.empty()) continue;
        detail::require(!kinds.empty(), "'", joined(phrase), "' is a colour without a shape. ",
                        help());
        detail::require(!colors.empty(), "'", joined(phrase), "' is a shape without a colour. ",
                        help());
        detail::require(colors.size() == 1 && kinds.size() == 1, "'", joined(phrase),
                        "' is more than one colour and one shape; is there a comma missing? ",
                        help());
        out.push_back({colors[0], kinds[0]});
    }
    const auto shapes = static_cast<index_t>(out.size());
    detail::require(shapes > 0, "the prompt '", prompt, "' asks for no shape. ", help());
    detail::require(shapes <= objects_, "the prompt asks for ", shapes, " shapes. ", help());
    out.resize(static_cast<std::size_t>(objects_), {absent_});
    out.push_back({background.value_or(dropped_)});
    return out;
}

tensor<3> prompt_reader::embed(const slots& words) const {
    const auto rows = static_cast<index_t>(words.size());
    tensor<3> out({1, rows, width_});
    const auto elements = out.elements<float>();
    std::ranges::copy(slot_vectors_, elements.begin());
    const auto width = static_cast<std::size_t>(width_);
    for (std::size_t slot = 0; slot < words.size(); ++slot) {
        for (std::size_t i = 0; i < width; ++i) {
            float sum = 0;
            for (const index_t word : words[slot]) {
                sum += word_vectors_[static_cast<std::size_t>(word) * width + i];
            }
            elements[slot * width + i] += sum;
        }
    }
    return out;
}

text_embedding prompt_reader::embed(std::string_view prompt) const {
    const slots words = parse(prompt);
    return {embed(words), embed(slots(words.size(), {dropped_}))};
}

}  // namespace moving_shapes
