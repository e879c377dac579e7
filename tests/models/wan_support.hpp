// SPDX-License-Identifier: Apache-2.0
// Small models and calls for the tests of the Wan transformer.
#pragma once

#include <support/recorded.hpp>
#include <support/reference.hpp>
#include <unistd.h>
#include <wan/dispatch.hpp>
#include <wan/transformer.hpp>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

/// A folder that goes away with the test.
class temporary_folder {
public:
    temporary_folder() {
        static int count = 0;
        path_ = std::filesystem::temp_directory_path() /
                ("latpar_wan_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
        std::filesystem::create_directories(path_);
    }
    temporary_folder(const temporary_folder&) = delete;
    temporary_folder& operator=(const temporary_folder&) = delete;
    ~temporary_folder() { std::filesystem::remove_all(path_); }

    [[nodiscard]] std::filesystem::path operator/(const std::string& name) const {
        return path_ / name;
    }
    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

private:
    std::filesystem::path path_;
};

inline constexpr std::string_view small_config =
    R"({"num_attention_heads":2,"attention_head_dim":14,"in_channels":4,"out_channels":3,)"
    R"("text_dim":8,"freq_dim":16,"ffn_dim":40,"num_layers":3,"rope_max_seq_len":32})";

inline std::shared_ptr<const wan::weights> small_model() {
    static const std::shared_ptr<const wan::weights> model = [] {
        const temporary_folder folder;
        wan::write_random_model(folder / "small.safetensors", small_config, 1);
        return wan::load_weights(folder / "small.safetensors");
    }();
    return model;
}

inline std::shared_ptr<wan::executor> executor_of(int threads, std::string_view kernels = "auto",
                                                  latpar::memory_source memory = {}) {
    return std::make_shared<wan::executor>(
        wan::executor_options{threads, std::string(kernels), memory});
}

/// Numbers that repeat nowhere soon.
inline void fill(std::span<float> values, float seed) {
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = std::sin(seed + 1.7f * static_cast<float>(i % 1013) +
                             0.31f * static_cast<float>(i / 7));
    }
}

inline std::vector<float> filled(latpar::index_t count, float seed) {
    std::vector<float> out(static_cast<std::size_t>(count));
    fill(out, seed);
    return out;
}

inline latpar::latent filled_latent(const std::array<latpar::index_t, 5>& extents, float seed) {
    latpar::latent out(extents);
    fill(out.elements<float>(), seed);
    return out;
}

/// Bitwise; a failed check prints no arrays.
inline bool identical(std::span<const float> a, std::span<const float> b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

/// Gives both branches a text.
template <class Model>
void set_texts(Model& model) {
    const latpar::index_t columns = model.shape().text_dim;
    model.set_text(latpar::guidance_branch::conditional, filled(5 * columns, 0.5f));
    model.set_text(latpar::guidance_branch::unconditional, filled(3 * columns, -2.0f));
}

/// A step_info for one or more samples of a latent, and what it points to.
class call {
public:
    call(const latpar::latent& z, double timestep, latpar::extents3 origin = {}) {
        samples.resize(static_cast<std::size_t>(z.view().extents[0]));
        for (auto& sample : samples) {
            sample.timestep = timestep;
            sample.branch = latpar::guidance_branch::conditional;
        }
        const latpar::extents3 extent = spatial_extents(z.view());
        info.window = {origin, extent};
        info.global = {origin[0] + extent[0], origin[1] + extent[1], origin[2] + extent[2]};
        info.samples = samples;
    }
    call(const call&) = delete;
    call& operator=(const call&) = delete;

    std::vector<latpar::sample_info> samples;
    latpar::step_info info;
};

/// The whole prediction for a latent.
template <class Model>
std::vector<float> predicted(Model& model, const latpar::latent& z, const latpar::step_info& info) {
    auto extents = z.view().extents;
    extents[1] = model.shape().out_channels;
    latpar::latent prediction(extents);
    model(z.view(), info, prediction.view(), {});
    const auto values = prediction.elements<float>();
    return {values.begin(), values.end()};
}
