// SPDX-License-Identifier: Apache-2.0
// Time of one prediction of Wan 2.1 1.3B on a GPU, random weights, and of its self-attention alone.
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>

#include <gpu_benchmark.hpp>
#include <wan/cuda/kernels.hpp>
#include <wan/cuda/transformer.hpp>

#include <array>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

using namespace latpar;

namespace {

constexpr index_t text_tokens = 512;
/// What cuBLAS reaches on an H200 on large bfloat16 products of random numbers.
constexpr double peak_tflops = 790;

/// Milliseconds on the device: the median of `repeats` after one that is not counted.
template <class Work>
double milliseconds(stream_ref stream, int repeats, const Work& work) {
    work();
    std::vector<double> taken;
    for (int i = 0; i < repeats; ++i) {
        taken.push_back(gpu_benchmark::milliseconds(stream, work));
    }
    return gpu_benchmark::median(std::move(taken));
}

void fill(latent& to) {
    wan::cuda::fill_random(to.view().data, to.view().elements(), to.view().type, 1, 0, 7, {});
}

nlohmann::json measure(std::shared_ptr<const wan::cuda::weights> weights, memory_source memory,
                       int frames, int repeats) {
    counting_resource counted(memory.resource);
    const extents3 window{(frames - 1) / 4 + 1, 60, 104};
    const wan::config config = weights->config;
    auto exec = std::make_shared<wan::cuda::executor>(
        wan::cuda::executor_options{weights->type, {&counted, memory_space::cuda}});
    wan::cuda::transformer<> model(weights, exec);
    model.set_text(guidance_branch::conditional,
                   std::vector<float>(static_cast<std::size_t>(text_tokens * config.text_dim), 1));
    latent z({1, 16, window[0], window[1], window[2]}, dtype::f32, memory);
    latent prediction(z.view().extents, dtype::f32, memory);
    fill(z);
    sample_info sample;
    sample.timestep = 500;
    sample.branch = guidance_branch::conditional;
    step_info info;
    info.samples = {&sample, 1};
    info.window = box_of(window);
    info.global = window;
    const cuda::stream stream;
    const index_t tokens = volume_of(config.token_grid(window));
    const double total =
        milliseconds(stream, repeats, [&] { model(z.view(), info, prediction.view(), stream); });

    // Self-attention of one layer, on rows of the same kind as those of the model.
    const index_t row = config.width();
    std::array<latent, 4> rows;
    for (latent& one : rows) {
        one = latent({1, 1, 1, tokens, row}, weights->type, memory);
        fill(one);
    }
    const std::array<index_t, 3> extents{tokens, config.num_attention_heads,
                                         config.attention_head_dim};
    const auto heads = [&](latent& from) {
        return wan::heads_view{from.view().data, extents, dense_strides(extents), weights->type,
                               memory_space::cuda};
    };
    const auto time_of = [&](wan::cuda::attention::kernels which) {
        return milliseconds(stream, repeats, [&] {
            wan::cuda::attention{which}(heads(rows[0]), heads(rows[1]), heads(rows[2]),
                                        heads(rows[3]), {}, stream);
        });
    };
    const double attention = time_of(wan::cuda::attention::kernels::best);
    const double common = time_of(wan::cuda::attention::kernels::common);

    const auto layers = static_cast<double>(config.num_layers);
    const double tflop = 1e-12 * config.operations(tokens, text_tokens);
    const double attention_tflop =
        4e-12 * static_cast<double>(tokens) * static_cast<double>(tokens * row);
    const double reached = 1e3 * tflop / total;
    const double attention_reached = 1e3 * attention_tflop / attention;
    std::printf(
        "%s, 480x832, %d frames, %lld tokens: %.1f ms a prediction, %.0f TFLOP/s, %.1f %% "
        "of %.0f; of them self-attention %.1f ms, %.0f TFLOP/s (with the kernels of all devices "
        "%.1f "
        "ms, %.0f TFLOP/s); %.0f MB of activations\n",
        std::string(name_of(weights->type)).c_str(), frames, static_cast<long long>(tokens), total,
        reached, 100 * reached / peak_tflops, peak_tflops, layers * attention, attention_reached,
        layers * common, 1e3 * attention_tflop / common,
        1e-6 * static_cast<double>(counted.peak_bytes()));
    return {{"type", name_of(weights->type)},
            {"frames", frames},
            {"tokens", tokens},
            {"milliseconds", total},
            {"tflop", tflop},
            {"tflops", reached},
            {"fraction_of_peak", reached / peak_tflops},
            {"self_attention_milliseconds", layers * attention},
            {"self_attention_tflops", attention_reached},
            {"common_self_attention_milliseconds", layers * common},
            {"activation_bytes", counted.peak_bytes()}};
}

}  // namespace

// wan_forward_cuda [results.json] [KEY=TEXT, such as commit=...]...
int main(int argc, char** argv) {
    return gpu_benchmark::run(argc, argv, "wan_forward_cuda", 1, [](nlohmann::json& report) {
        report["model"] = "Wan 2.1 1.3B, random weights";
        report["text_tokens"] = text_tokens;
        report["peak_tflops"] = peak_tflops;
        cuda::device_memory memory;
        const auto config = wan::parse_config(gpu_benchmark::wan_1_3b, "Wan 2.1 1.3B");
        const auto weights = wan::cuda::random_weights(config, dtype::bf16, memory.source(), 1);
        for (const int frames : {49, 81}) {
            report["cases"].push_back(measure(weights, memory.source(), frames, 3));
        }
    });
}
