// SPDX-License-Identifier: Apache-2.0
// Reading a Wan transformer's configuration.
#include <nlohmann/json.hpp>
#include <wan/config.hpp>

#include <cmath>
#include <string>

namespace wan {
namespace {

using latpar::io_error;
using latpar::detail::require;
using nlohmann::json;

constexpr index_t largest = 1 << 20;

index_t positive(const json& value, std::string_view name, std::string_view where) {
    require<io_error>(value.is_number_integer() && value >= 1 && value <= largest, where, ": ",
                      name, " is ", value.dump(), "; an integer from 1 to ", largest,
                      " was expected");
    return value.get<index_t>();
}

// Options whose other values change the architecture.
void check_variant(const json& document, const char* name, const json& supported,
                   std::string_view where) {
    const auto found = document.find(name);
    require<io_error>(found == document.end() || *found == supported, where, ": ", name, " is ",
                      found == document.end() ? "" : found->dump(), "; only ", supported.dump(),
                      " is implemented");
}

}  // namespace

latpar::extents3 config::token_grid(const latpar::extents3& window) const {
    latpar::extents3 grid{};
    for (std::size_t i = 0; i < 3; ++i) {
        require(window[i] > 0 && window[i] % patch_size[i] == 0, "a window of ", window[0], "x",
                window[1], "x", window[2], " latents (TxHxW) does not consist of whole patches of ",
                patch_size[0], "x", patch_size[1], "x", patch_size[2]);
        grid[i] = window[i] / patch_size[i];
    }
    return grid;
}

latpar::extents3 config::rotary_pairs() const noexcept {
    const index_t spatial = attention_head_dim / 6;
    return {attention_head_dim / 2 - 2 * spatial, spatial, spatial};
}

double config::rotary_angle(std::size_t axis, index_t pair, index_t position) const noexcept {
    const double exponent = static_cast<double>(pair) / static_cast<double>(rotary_pairs()[axis]);
    return static_cast<double>(position) / std::pow(1e4, exponent);
}

float config::time_frequency(index_t i) const noexcept {
    const float exponent = -std::log(1e4f) * static_cast<float>(i);
    return std::exp(exponent / static_cast<float>(freq_dim / 2));
}

double config::operations(index_t tokens, index_t text_tokens) const noexcept {
    const auto n = static_cast<double>(tokens);
    const auto s = static_cast<double>(text_tokens);
    const auto w = static_cast<double>(width());
    const double rows = n * w * (6 * w + 2 * static_cast<double>(ffn_dim));
    const double attention = 2 * n * w * (n + s);
    const double ends = n * w * static_cast<double>(patch_volume() * (in_channels + out_channels));
    return 2 * (static_cast<double>(num_layers) * (rows + attention) + ends);
}

config parse_config(std::string_view text, std::string_view where) {
    const json document = json::parse(text, nullptr, false);
    require<io_error>(document.is_object(), where, ": the configuration is not a JSON object");
    const auto at = [&](const char* name) {
        const auto found = document.find(name);
        require<io_error>(found != document.end(), where, ": the configuration lacks ", name);
        return positive(*found, name, where);
    };
    config out;
    out.num_attention_heads = at("num_attention_heads");
    out.attention_head_dim = at("attention_head_dim");
    out.in_channels = at("in_channels");
    out.out_channels = at("out_channels");
    out.text_dim = at("text_dim");
    out.freq_dim = at("freq_dim");
    out.ffn_dim = at("ffn_dim");
    out.num_layers = at("num_layers");
    if (document.contains("rope_max_seq_len")) out.rope_max_seq_len = at("rope_max_seq_len");
    if (const auto patch = document.find("patch_size"); patch != document.end()) {
        require<io_error>(patch->is_array() && patch->size() == 3, where, ": patch_size is ",
                          patch->dump(), "; three integers were expected");
        for (std::size_t i = 0; i < 3; ++i) {
            out.patch_size[i] = positive((*patch)[i], "patch_size", where);
        }
    }
    if (const auto eps = document.find("eps"); eps != document.end()) {
        require<io_error>(eps->is_number() && *eps > 0 && *eps < 1, where, ": eps is ", eps->dump(),
                          "; a number between 0 and 1 was expected");
        out.eps = eps->get<float>();
    }
    require<io_error>(out.attention_head_dim % 2 == 0 && out.attention_head_dim >= 6, where,
                      ": attention_head_dim is ", out.attention_head_dim,
                      "; an even number from 6 on was expected");
    require<io_error>(out.freq_dim % 2 == 0, where, ": freq_dim is ", out.freq_dim,
                      "; an even number was expected");
    check_variant(document, "cross_attn_norm", true, where);
    check_variant(document, "qk_norm", "rms_norm_across_heads", where);
    check_variant(document, "image_dim", nullptr, where);
    check_variant(document, "added_kv_proj_dim", nullptr, where);
    check_variant(document, "pos_embed_seq_len", nullptr, where);
    return out;
}

}  // namespace wan
