// SPDX-License-Identifier: Apache-2.0
// What the benchmarks on GPUs share: time on a device, medians, the command line and the report.
#pragma once

#include <latpar/core/error.hpp>
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/memory_resource.hpp>

#include <cuda_runtime_api.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gpu_benchmark {

/// The shape of Wan 2.1 1.3B.
inline constexpr std::string_view wan_1_3b =
    R"({"patch_size":[1,2,2],"num_attention_heads":12,"attention_head_dim":128,"in_channels":16,)"
    R"("out_channels":16,"text_dim":4096,"freq_dim":256,"ffn_dim":8960,"num_layers":30,)"
    R"("cross_attn_norm":true,"eps":1e-6,"rope_max_seq_len":1024})";

inline void must(cudaError_t status) {
    if (status != cudaSuccess) throw latpar::device_error(cudaGetErrorString(status));
}

/// The value below which such a share of the others lies.
[[nodiscard]] inline double quantile(std::vector<double> values, double share) {
    const auto at =
        values.begin() + static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size()));
    std::nth_element(values.begin(), at, values.end());
    return *at;
}
[[nodiscard]] inline double median(std::vector<double> values) {
    return quantile(std::move(values), 0.5);
}

/// A point in a stream, and how long it was after another.
class event {
public:
    event() { must(cudaEventCreate(&handle_)); }
    event(const event&) = delete;
    event& operator=(const event&) = delete;
    ~event() { static_cast<void>(cudaEventDestroy(handle_)); }

    void record(latpar::stream_ref stream) {
        must(cudaEventRecord(handle_, static_cast<cudaStream_t>(stream.handle)));
    }
    /// Waits for it.
    [[nodiscard]] double milliseconds_since(const event& begin) const {
        must(cudaEventSynchronize(handle_));
        float out = 0;
        must(cudaEventElapsedTime(&out, begin.handle_, handle_));
        return out;
    }

private:
    cudaEvent_t handle_ = nullptr;
};

/// Milliseconds on the device between what is queued before `work()` and behind it.
template <class Work>
double milliseconds(latpar::stream_ref stream, Work&& work) {
    event begin, end;
    begin.record(stream);
    work();
    end.record(stream);
    return end.milliseconds_since(begin);
}

/// Keeps a device busy by clearing 4 GiB, for about a millisecond of an H200, in which the host
/// queues what is measured: as in a model, whose host is ahead of the device.
class head_start {
public:
    head_start() : memory_(latpar::index_t{4} << 30, resource_.source()) {}
    void give(latpar::stream_ref stream) {
        must(cudaMemsetAsync(memory_.data(), 0, static_cast<std::size_t>(memory_.bytes()),
                             static_cast<cudaStream_t>(stream.handle)));
    }

private:
    latpar::cuda::device_memory resource_;
    latpar::buffer memory_;
};

/// The main function: `measure(report)` fills in a report with so many devices, which then goes to
/// the file that the command line names.
template <class Measure>
int run(int argc, char** argv, const char* name, int devices, Measure&& measure) try {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    std::string file_name;
    nlohmann::json report = {{"benchmark", name}};
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        const std::size_t equals = word.find('=');
        if (word.starts_with('-')) {
            std::fprintf(stderr, "usage: %s [results.json] [KEY=TEXT, such as commit=...]...\n",
                         argv[0]);
            return 2;
        }
        if (equals == std::string::npos) {
            file_name = word;
        } else {
            report[word.substr(0, equals)] = word.substr(equals + 1);
        }
    }
    if (latpar::cuda::device_count() < devices) {
        std::fprintf(stderr, "%d CUDA devices are needed, there are %d\n", devices,
                     latpar::cuda::device_count());
        return 1;
    }
    int runtime = 0;
    must(cudaRuntimeGetVersion(&runtime));
    report["device"] = latpar::cuda::device_name(0);
    report["cuda_runtime"] = runtime;
    measure(report);
    if (!file_name.empty()) {
        std::ofstream file(file_name);
        file << report.dump(2) << '\n';
        if (!file.good()) throw latpar::io_error(file_name + " cannot be written");
    }
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}

}  // namespace gpu_benchmark
