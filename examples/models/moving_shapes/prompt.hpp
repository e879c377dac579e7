// SPDX-License-Identifier: Apache-2.0
// From words to the text embeddings of the moving-shapes model.
#pragma once

#include <latpar/core/memory.hpp>
#include <latpar/io/safetensors.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace moving_shapes {

/// What the model is conditioned on: [1, slots, text_dim], float32.
struct text_embedding {
    latpar::tensor<3> conditional;
    latpar::tensor<3> unconditional;
};

/// Reads prompts such as "red circle, blue star, night".
///
/// A prompt is phrases between commas: shapes, each a colour and a kind in either order, and at
/// most one background, anywhere. Case and spaces do not matter. Without a background the model
/// picks one.
class prompt_reader {
public:
    /// The word indices of each slot, as the model was trained with them.
    using slots = std::vector<std::vector<latpar::index_t>>;

    /// Reads `prompt.tokens`, `prompt.slots` and the metadata key `prompt`.
    ///
    /// Errors: io_error for a tensor or a value that is missing or does not fit the others.
    [[nodiscard]] static prompt_reader load(const latpar::safetensors_file& weights);

    /// Errors: usage_error for what is no prompt; the message says why and lists what is known.
    [[nodiscard]] slots parse(std::string_view prompt) const;

    /// Errors: as `parse`.
    [[nodiscard]] text_embedding embed(std::string_view prompt) const;

    /// A sentence that tells a user what can be asked for.
    [[nodiscard]] std::string help() const;

private:
    /// A run of words of one class.
    struct word_class {
        latpar::index_t first = 0;
        latpar::index_t count = 0;
        [[nodiscard]] bool contains(latpar::index_t word) const noexcept {
            return word >= first && word < first + count;
        }
    };

    prompt_reader() = default;
    [[nodiscard]] std::string list(word_class words) const;
    [[nodiscard]] latpar::index_t index_of(const std::string& word) const;
    [[nodiscard]] latpar::tensor<3> embed(const slots& words) const;

    std::vector<std::string> words_;
    word_class colors_;
    word_class kinds_;
    word_class backgrounds_;
    latpar::index_t objects_ = 0;  // slots for shapes; the background's slot follows
    latpar::index_t absent_ = 0;   // the word of a slot without a shape
    latpar::index_t dropped_ = 0;  // the word of a slot that was not asked for
    latpar::index_t width_ = 0;
    std::vector<float> word_vectors_;  // [words, width]
    std::vector<float> slot_vectors_;  // [slots, width]
};

}  // namespace moving_shapes
