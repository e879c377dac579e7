// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels against cudaMemcpyAsync on the same bytes, and small ones against a launch.
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>

#include <cuda_runtime_api.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

cudaError_t launch_nothing(cudaStream_t stream);

using namespace latpar;

namespace {

using extents5 = std::array<index_t, 5>;

void must(cudaError_t status) {
    if (status != cudaSuccess) throw device_error(cudaGetErrorString(status));
}

double median(std::vector<double> values) {
    std::nth_element(values.begin(),
                     values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

/// Two events about what is queued between them.
class stopwatch {
public:
    explicit stopwatch(stream_ref stream) : stream_(static_cast<cudaStream_t>(stream.handle)) {
        must(cudaEventCreate(&begin_));
        must(cudaEventCreate(&end_));
    }
    stopwatch(const stopwatch&) = delete;
    stopwatch& operator=(const stopwatch&) = delete;
    ~stopwatch() {
        static_cast<void>(cudaEventDestroy(begin_));
        static_cast<void>(cudaEventDestroy(end_));
    }

    /// Seconds on the device.
    template <class F>
    double operator()(F&& f) {
        must(cudaEventRecord(begin_, stream_));
        f();
        must(cudaEventRecord(end_, stream_));
        must(cudaEventSynchronize(end_));
        float milliseconds = 0;
        must(cudaEventElapsedTime(&milliseconds, begin_, end_));
        return 1e-3 * milliseconds;
    }

private:
    cudaStream_t stream_;
    cudaEvent_t begin_ = nullptr;
    cudaEvent_t end_ = nullptr;
};

/// Bytes of the distinct 64-byte sectors that a view touches; its rows lie in rising order.
index_t sector_bytes(const const_latent_view& view) {
    constexpr index_t sector = 64;
    const index_t size = size_of(view.type);
    const index_t row = view.extents[4] * size;
    index_t count = 0;
    index_t last = -1;
    extents5 at{};
    for (at[0] = 0; at[0] < view.extents[0]; ++at[0])
        for (at[1] = 0; at[1] < view.extents[1]; ++at[1])
            for (at[2] = 0; at[2] < view.extents[2]; ++at[2])
                for (at[3] = 0; at[3] < view.extents[3]; ++at[3]) {
                    const auto begin =
                        static_cast<index_t>(reinterpret_cast<std::uintptr_t>(view.data) +
                                             static_cast<std::uintptr_t>(view.offset(at) * size));
                    const index_t first = std::max(begin / sector, last + 1);
                    last = (begin + row - 1) / sector;
                    count += last + 1 - first;
                }
    return count * sector;
}

class benchmark {
public:
    /// Each `bytes` long, with random finite float32 and bfloat16 in it.
    benchmark() {
        std::mt19937 generator(1);
        std::vector<float> values(std::size_t{16} << 20);
        std::uniform_real_distribution<float> draw(-2, 2);
        for (float& value : values) value = draw(generator);
        const index_t chunk = static_cast<index_t>(values.size() * sizeof(float));
        for (buffer& b : buffers_) {
            b = buffer(bytes, memory_.source());
            for (index_t done = 0; done < bytes; done += chunk) {
                cuda::copy_bytes(b.data() + done, values.data(), std::min(chunk, bytes - done),
                                 stream_);
            }
        }
    }

    /// A dense tensor at the beginning of a buffer.
    [[nodiscard]] latent_view tensor(std::size_t which, const extents5& extents,
                                     dtype type = dtype::f32, index_t skip_bytes = 0) const {
        latent_view out{buffers_[which].data() + skip_bytes, extents, dense_strides(extents), type,
                        memory_space::cuda};
        if (skip_bytes + out.bytes() > bytes) throw usage_error("a tensor of more than a buffer");
        return out;
    }

    /// Times `work`, which touches these bytes, and a copy of as many.
    void large(const std::string& name, index_t touched, const std::function<void()>& work) {
        stopwatch time(stream_);
        std::vector<double> worked;
        std::vector<double> copied;
        const auto handle = static_cast<cudaStream_t>(stream_.ref().handle);
        // A copy reads and writes: half as many bytes each way, in pieces of what a buffer holds.
        const auto copy = [&] {
            for (index_t left = touched / 2; left > 0; left -= bytes) {
                must(cudaMemcpyAsync(buffers_[5].data(), buffers_[4].data(),
                                     static_cast<std::size_t>(std::min(left, bytes)),
                                     cudaMemcpyDeviceToDevice, handle));
            }
        };
        for (int turn = -3; turn < 21; ++turn) {
            const double its_time = time(work);
            const double copy_time = time(copy);
            if (turn < 0) continue;
            worked.push_back(its_time);
            copied.push_back(copy_time);
        }
        const double ratio = median(copied) / median(worked);
        const double speed = 1e-9 * static_cast<double>(touched) / median(worked);
        std::printf("%-44s %8.3f ms  %6.0f GB/s  %5.3f of memcpy\n", name.c_str(),
                    1e3 * median(worked), speed, ratio);
        rows_.push_back({{"name", name},
                         {"sector_bytes", touched},
                         {"seconds", median(worked)},
                         {"memcpy_seconds", median(copied)},
                         {"ratio", ratio}});
    }

    /// Times `work`, many calls in a row, and as many empty launches.
    void small(const std::string& name, index_t touched, const std::function<void()>& work) {
        constexpr int calls = 100;
        stopwatch time(stream_);
        const auto handle = static_cast<cudaStream_t>(stream_.ref().handle);
        std::vector<double> worked;
        std::vector<double> empty;
        std::vector<double> host;
        for (int turn = -3; turn < 21; ++turn) {
            double host_seconds = 0;
            const double its_time = time([&] {
                const auto begin = std::chrono::steady_clock::now();
                for (int i = 0; i < calls; ++i) work();
                host_seconds =
                    std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
            });
            const double empty_time = time([&] {
                for (int i = 0; i < calls; ++i) must(launch_nothing(handle));
            });
            if (turn < 0) continue;
            worked.push_back(its_time / calls);
            empty.push_back(empty_time / calls);
            host.push_back(host_seconds / calls);
        }
        const double over = median(worked) / median(empty);
        std::printf("%-44s %8.2f us  %6.2f us empty, %6.2f us on the host  %5.2f of a launch\n",
                    name.c_str(), 1e6 * median(worked), 1e6 * median(empty), 1e6 * median(host),
                    over);
        rows_.push_back({{"name", name},
                         {"sector_bytes", touched},
                         {"seconds", median(worked)},
                         {"empty_launch_seconds", median(empty)},
                         {"host_seconds", median(host)},
                         {"launches", over}});
    }

    void run() {
        boxes();
        batches();
        stitches();
        combinations();
        merges();
        small_latents();
    }

    [[nodiscard]] const nlohmann::json& rows() const { return rows_; }

private:
    static constexpr index_t bytes = index_t{512} << 20;
    static constexpr extents5 whole{1, 16, 64, 256, 512};  // 512 MiB of float32

    void box_of(const char* name, const extents5& extents, const box& region) {
        const latent_view inside = subview(tensor(0, extents), region);
        const latent_view dense = tensor(1, inside.extents);
        const latent_view half = tensor(1, inside.extents, dtype::bf16);
        const index_t touched = sector_bytes(inside);
        const auto named = [&](const char* what) { return std::string(what) + ' ' + name; };
        large(named("pack"), touched + sector_bytes(dense),
              [=, this] { kernels_.copy(inside, dense, stream_); });
        large(named("unpack"), touched + sector_bytes(dense),
              [=, this] { kernels_.copy(dense, inside, stream_); });
        large(named("pack to bf16"), touched + sector_bytes(half),
              [=, this] { kernels_.copy(inside, half, stream_); });
        large(named("unpack from bf16"), touched + sector_bytes(half),
              [=, this] { kernels_.copy(half, inside, stream_); });
    }

    void boxes() {
        const latent_view all = tensor(0, whole);
        large("copy, dense", 2 * sector_bytes(all),
              [=, this] { kernels_.copy(all, tensor(1, whole), stream_); });
        box_of("along T", whole, {{16, 0, 0}, {32, 256, 512}});
        box_of("along H", whole, {{0, 64, 0}, {64, 128, 512}});
        box_of("along W", whole, {{0, 0, 128}, {64, 256, 256}});
        // Rows as Wan's latents have them, and a box that begins within a sector.
        constexpr extents5 wan{1, 16, 84, 960, 104};
        box_of("along W, 60 of 104", wan, {{0, 0, 22}, {84, 960, 60}});
        box_of("along W, 51 of 104", wan, {{0, 0, 27}, {84, 960, 51}});
        // Half the tensor, for in-place work reads and writes it.
        large("round to bf16 in place", 2 * sector_bytes(all),
              [=, this] { kernels_.round(all, dtype::bf16, stream_); });
    }

    void batches() {
        std::vector<kernel::copy_pair> pairs;
        index_t touched = 0;
        for (index_t k = 0; k < 8; ++k) {
            const latent_view inside = subview(tensor(0, whole), {{0, 32 * k, 0}, {64, 32, 512}});
            const latent_view dense = tensor(1, inside.extents, dtype::f32, k * (bytes / 8));
            pairs.push_back({inside, dense});
            touched += sector_bytes(inside) + sector_bytes(dense);
        }
        large("copy_all, 8 boxes along H", touched,
              [=, this] { kernels_.copy_all(pairs, stream_); });
    }

    /// Four parts that overlap by half of what is their own.
    void stitch(axis along, const extents5& extents, bool is_small) {
        const std::size_t cut = 2 + index_of(along);
        const index_t own = extents[cut] / 4;
        auto part_extents = extents;
        part_extents[cut] = own + own / 2;
        const std::vector<float> weights(static_cast<std::size_t>(part_extents[cut]), 0.5f);
        const latent_view output = tensor(0, extents);
        std::vector<kernel::stitch_part> parts;
        index_t touched = sector_bytes(output);
        for (index_t k = 0; k < 4; ++k) {
            const latent_view part = tensor(1 + static_cast<std::size_t>(k % 3), part_extents,
                                            dtype::f32, k == 3 ? bytes / 2 : 0);
            // The last one moves back, so that all of it is read.
            const index_t begin = std::min(k * own, extents[cut] - part_extents[cut]);
            parts.push_back({part, begin, weights});
            touched += sector_bytes(part);
        }
        const std::string name =
            "stitch, 4 parts along " + std::string(name_of(along)) + (is_small ? ", small" : "");
        const auto work = [=, this] { kernels_.stitch(output, along, parts, stream_); };
        is_small ? small(name, touched, work) : large(name, touched, work);
    }

    void stitches() {
        for (const axis along : all_axes) stitch(along, whole, false);
    }

    void combinations() {
        const std::vector<const_latent_view> inputs{tensor(0, whole), tensor(1, whole),
                                                    tensor(2, whole)};
        const index_t one = sector_bytes(inputs[0]);
        const std::vector<latent_view> single{tensor(0, whole)};
        large("linear_combination, 3 to 1 in place", 4 * one, [=, this] {
            kernels_.linear_combination(inputs, std::array{0.5f, 0.3f, -0.2f}, single, stream_);
        });
        const std::vector<latent_view> both{tensor(0, whole), tensor(1, whole)};
        large("linear_combination, 3 to 2 in place", 5 * one, [=, this] {
            kernels_.linear_combination(inputs, std::array{0.5f, 0.3f, -0.2f, 0.1f, 0.4f, 0.2f},
                                        both, stream_);
        });
    }

    void merges() {
        // Heads as Wan 2.1 14B has them.
        constexpr extents5 heads{1, 1, 40000, 40, 128};
        constexpr extents5 logs{1, 1, 40000, 40, 1};
        const latent_view output = tensor(0, heads, dtype::bf16);
        const latent_view part = tensor(1, heads, dtype::bf16);
        const latent_view lse = tensor(2, logs);
        const latent_view part_lse = tensor(3, logs);
        const index_t touched = 2 * sector_bytes(output) + sector_bytes(part) + 3 * lse.bytes();
        large("merge_attention, bf16", touched,
              [=, this] { kernels_.merge_attention(output, lse, part, part_lse, stream_); });
    }

    /// The latent of 81 frames of 480x832: what a denoising step works on.
    void small_latents() {
        constexpr extents5 wan{1, 16, 21, 60, 104};
        const latent_view all = tensor(0, wan);
        for (const axis along : all_axes) {
            box region = latpar::box_of(spatial_extents(all));
            region.extent[index_of(along)] /= 2;
            const latent_view inside = subview(all, region);
            const latent_view dense = tensor(1, inside.extents);
            small("pack along " + std::string(name_of(along)) + ", small",
                  sector_bytes(inside) + sector_bytes(dense),
                  [=, this] { kernels_.copy(inside, dense, stream_); });
        }
        for (const axis along : all_axes) stitch(along, wan, true);
        const std::vector<const_latent_view> inputs{all, tensor(1, wan), tensor(2, wan)};
        const std::vector<latent_view> outputs{all};
        small("linear_combination, 3 to 1, small", 4 * sector_bytes(all), [=, this] {
            kernels_.linear_combination(inputs, std::array{0.5f, 0.3f, -0.2f}, outputs, stream_);
        });
        const latent_view one = tensor(0, {1, 1, 1, 1, 1});
        small("copy, one element", 128, [=, this] {
            kernels_.copy(one, tensor(1, {1, 1, 1, 1, 1}), stream_);
        });
    }

    cuda::stream stream_;
    cuda::device_memory memory_;
    cuda::kernels kernels_;
    // Four to work on, two for the copies that it is compared with.
    std::array<buffer, 6> buffers_;
    nlohmann::json rows_ = nlohmann::json::array();
};

}  // namespace

int main(int argc, char** argv) try {
    std::string file_name;
    nlohmann::json report = {{"benchmark", "cuda_kernels"}};
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
    if (cuda::device_count() == 0) {
        std::fprintf(stderr, "there is no CUDA device\n");
        return 1;
    }
    int runtime = 0;
    must(cudaRuntimeGetVersion(&runtime));
    report["device"] = cuda::device_name(cuda::current_device());
    report["cuda_runtime"] = runtime;
    benchmark all;
    all.run();
    report["rows"] = all.rows();
    if (!file_name.empty()) {
        std::ofstream file(file_name);
        file << report.dump(2) << '\n';
        if (!file.good()) throw io_error(file_name + " cannot be written");
    }
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
