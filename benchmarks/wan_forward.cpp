// SPDX-License-Identifier: Apache-2.0
// Time of one prediction of the Wan transformer at the size of the bundled model, random weights.
#include <unistd.h>
#include <wan/dispatch.hpp>
#include <wan/transformer.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <string>

namespace {

using namespace latpar;

constexpr std::string_view shape =
    R"({"patch_size":[1,2,2],"num_attention_heads":4,"attention_head_dim":48,"in_channels":16,)"
    R"("out_channels":16,"text_dim":64,"freq_dim":128,"ffn_dim":768,"num_layers":8,)"
    R"("cross_attn_norm":true,"eps":1e-6,"rope_max_seq_len":256})";
constexpr index_t text_tokens = 4;
constexpr extents3 window{16, 24, 24};

template <class Work>
double best_seconds(int repeats, const Work& work) {
    double best = 1e9;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        work();
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        best = std::min(best, taken.count());
    }
    return best;
}

// What Eigen reaches on one large product on one thread.
double peak_gflops(const wan::kernel_table& kernels) {
    constexpr index_t n = 1024;
    const std::vector<float> a(n * n, 0.5f);
    std::vector<float> out(n * n);
    const double seconds =
        best_seconds(5, [&] { kernels.linear(a.data(), n, n, a.data(), a.data(), n, out.data()); });
    return 2e-9 * n * n * n / seconds;
}

}  // namespace

// wan_forward [threads]
int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
    const auto file = std::filesystem::temp_directory_path() /
                      ("wan_forward." + std::to_string(::getpid()) + ".safetensors");
    wan::write_random_model(file, shape, 1);
    const auto weights = wan::load_weights(file);
    std::filesystem::remove(file);

    latent z({1, 16, window[0], window[1], window[2]});
    latent prediction(z.view().extents);
    std::ranges::fill(z.elements<float>(), 0.25f);
    const std::vector<float> text(text_tokens * weights->config.text_dim, 0.5f);
    sample_info sample;
    sample.timestep = 500;
    sample.branch = guidance_branch::conditional;
    step_info info;
    info.samples = {&sample, 1};
    info.window = box_of(window);
    info.global = window;
    const index_t tokens = volume_of(weights->config.token_grid(window));
    const double gflop = 1e-9 * weights->config.operations(tokens, text_tokens);

    std::cout << std::fixed << std::setprecision(1) << tokens << " tokens, " << gflop
              << " GFLOP for one prediction\n";
    for (const std::string_view name : wan::available_kernels()) {
        counting_resource counter;
        auto exec = std::make_shared<wan::executor>(
            wan::executor_options{threads, std::string(name), {&counter}});
        wan::transformer model(weights, exec);
        model.set_text(guidance_branch::conditional, text);
        const auto predict = [&] { model(z.view(), info, prediction.view(), {}); };
        predict();
        const double seconds = best_seconds(5, predict);
        const double reached = gflop / seconds / exec->threads();
        const double peak = peak_gflops(wan::find_kernels(name));
        std::cout << std::setw(9) << name << ", " << exec->threads()
                  << " threads: " << 1e3 * seconds << " ms, " << gflop / seconds << " GFLOP/s, "
                  << reached << " a thread = " << 100 * reached / peak << " % of Eigen's own "
                  << peak << ", " << 1e-6 * static_cast<double>(counter.peak_bytes())
                  << " MB of activations\n";
    }
}
