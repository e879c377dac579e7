// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels against cudaMemcpyAsync on the same bytes, and small ones against a launch.
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/kernels.hpp>
#include <latpar/cuda/memory_resource.hpp>
#include <latpar/cuda/stream.hpp>

#include <gpu_benchmark.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

cudaError_t launch_nothing(cudaStream_t stream);

using namespace latpar;
using gpu_benchmark::median;
using gpu_benchmark::must;

namespace {

using extents5 = std::array<index_t, 5>;

/// The 64-byte sectors that a view touches, each once, and those of them that it covers in part;
/// its rows lie in rising order.
struct sectors {
    index_t touched = 0;
    index_t in_part = 0;
};

sectors sectors_of(const const_latent_view& view) {
    constexpr index_t sector = 64;
    const index_t size = size_of(view.type);
    const index_t row = view.extents[4] * size;
    sectors out;
    index_t last = -1;
    index_t last_in_part = -1;
    // Rows without a gap between them are one run of bytes.
    index_t begin = 0;
    index_t end = 0;
    const auto add_part = [&](index_t at) {
        out.in_part += at > last_in_part;
        last_in_part = std::max(last_in_part, at);
    };
    const auto close = [&] {
        if (begin == end) return;
        const index_t first = begin / sector;
        const index_t final = (end - 1) / sector;
        out.touched += final + 1 - std::max(first, last + 1);
        last = final;
        if (begin % sector != 0) add_part(first);
        if (end % sector != 0) add_part(final);
    };
    extents5 at{};
    for (at[0] = 0; at[0] < view.extents[0]; ++at[0])
        for (at[1] = 0; at[1] < view.extents[1]; ++at[1])
            for (at[2] = 0; at[2] < view.extents[2]; ++at[2])
                for (at[3] = 0; at[3] < view.extents[3]; ++at[3]) {
                    const auto next =
                        static_cast<index_t>(reinterpret_cast<std::uintptr_t>(view.data) +
                                             static_cast<std::uintptr_t>(view.offset(at) * size));
                    if (next != end) {
                        close();
                        begin = next;
                    }
                    end = next + row;
                }
    close();
    return out;
}

/// Bytes that memory moves for a view that is read.
index_t read_bytes(const const_latent_view& view) {
    return sectors_of(view).touched * 64;
}

/// Bytes that memory moves for a view that is written: a sector that is written in part is read
/// first, since what lies beside is kept, so it counts twice.
index_t written_bytes(const const_latent_view& view) {
    const sectors count = sectors_of(view);
    return (count.touched + count.in_part) * 64;
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
        const auto time = [&](auto&& queued) {
            return 1e-3 * gpu_benchmark::milliseconds(stream_, queued);
        };
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
        const auto time = [&](auto&& queued) {
            return 1e-3 * gpu_benchmark::milliseconds(stream_, queued);
        };
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
        const auto named = [&](const char* what) { return std::string(what) + ' ' + name; };
        large(named("pack"), read_bytes(inside) + written_bytes(dense),
              [=, this] { kernels_.copy(inside, dense, stream_); });
        large(named("unpack"), read_bytes(dense) + written_bytes(inside),
              [=, this] { kernels_.copy(dense, inside, stream_); });
        large(named("pack to bf16"), read_bytes(inside) + written_bytes(half),
              [=, this] { kernels_.copy(inside, half, stream_); });
        large(named("unpack from bf16"), read_bytes(half) + written_bytes(inside),
              [=, this] { kernels_.copy(half, inside, stream_); });
    }

    /// What the runtime's own copy makes of rows that begin and end within sectors.
    void runtime_unpack(const char* name, const extents5& extents, const box& region) {
        const latent_view inside = subview(tensor(0, extents), region);
        const latent_view dense = tensor(1, inside.extents);
        const auto row = static_cast<std::size_t>(inside.extents[4] * size_of(inside.type));
        const auto pitch = static_cast<std::size_t>(inside.strides[3] * size_of(inside.type));
        const auto rows = static_cast<std::size_t>(dense.bytes()) / row;
        const auto handle = static_cast<cudaStream_t>(stream_.ref().handle);
        large(std::string("cudaMemcpy2DAsync, unpack ") + name,
              read_bytes(dense) + written_bytes(inside), [=] {
                  must(cudaMemcpy2DAsync(inside.data, pitch, dense.data, row, row, rows,
                                         cudaMemcpyDeviceToDevice, handle));
              });
    }

    void boxes() {
        const latent_view all = tensor(0, whole);
        const index_t one = read_bytes(all);
        large("copy, dense", 2 * one, [=, this] { kernels_.copy(all, tensor(1, whole), stream_); });
        box_of("along T", whole, {{16, 0, 0}, {32, 256, 512}});
        box_of("along H", whole, {{0, 64, 0}, {64, 128, 512}});
        box_of("along W", whole, {{0, 0, 128}, {64, 256, 256}});
        // Rows as Wan's latents have them, and a box that begins within a sector.
        constexpr extents5 wan{1, 16, 84, 960, 104};
        box_of("along W, 60 of 104", wan, {{0, 0, 22}, {84, 960, 60}});
        runtime_unpack("along W, 60 of 104", wan, {{0, 0, 22}, {84, 960, 60}});
        box_of("along W, 51 of 104", wan, {{0, 0, 27}, {84, 960, 51}});
        runtime_unpack("along W, 51 of 104", wan, {{0, 0, 27}, {84, 960, 51}});
        // Half the tensor, for in-place work reads and writes it.
        large("round to bf16 in place", 2 * one,
              [=, this] { kernels_.round(all, dtype::bf16, stream_); });
    }

    void batches() {
        std::vector<kernel::copy_pair> pairs;
        for (index_t k = 0; k < 8; ++k) {
            const latent_view inside = subview(tensor(0, whole), {{0, 32 * k, 0}, {64, 32, 512}});
            pairs.push_back({inside, tensor(1, inside.extents, dtype::f32, k * (bytes / 8))});
        }
        all_copies("copy_all, 8 boxes along H", std::move(pairs));
        for (const index_t ranks : {2, 4}) {
            for (const index_t heads : {12, 40}) {
                for (const index_t head_dim : {64, 128}) relayout(ranks, heads, head_dim);
            }
        }
    }

    void all_copies(const std::string& name, std::vector<kernel::copy_pair> pairs) {
        index_t touched = 0;
        for (const kernel::copy_pair& c : pairs) {
            touched += read_bytes(c.source) + written_bytes(c.target);
        }
        large(name, touched,
              [pairs = std::move(pairs), this] { kernels_.copy_all(pairs, stream_); });
    }

    /// What Ulysses copies on the first rank: of q, k and v the heads of each peer into a message
    /// and its own to where they are gathered; and what comes back into all heads.
    void relayout(index_t ranks, index_t heads, index_t head_dim) {
        const std::string name = ", " + std::to_string(ranks) + " ranks, " + std::to_string(heads) +
                                 " heads of " + std::to_string(head_dim);
        const index_t own = heads / ranks;
        index_t next = 0;  // in the buffer of messages
        const auto dense = [&](std::size_t which, index_t tokens, index_t skip) {
            return tensor(which, {1, 1, tokens, own, head_dim}, dtype::bf16, skip);
        };
        const auto heads_of = [&](index_t tokens, index_t rank, index_t skip) {
            latent_view view = tensor(0, {1, 1, tokens, heads, head_dim}, dtype::bf16, skip);
            view.data += rank * own * head_dim * 2;
            view.extents[3] = own;
            return view;
        };
        const index_t row_bytes = heads * head_dim * 2;
        const index_t tokens = bytes / row_bytes / 3;
        std::vector<kernel::copy_pair> out;
        for (index_t which = 0; which < 3; ++which) {
            const index_t skip = which * tokens * row_bytes;
            out.push_back({heads_of(tokens, 0, skip), dense(2, tokens, skip)});
            for (index_t rank = 1; rank < ranks; ++rank) {
                const latent_view message = dense(1, tokens, next);
                next += message.bytes();
                out.push_back({heads_of(tokens, rank, skip), message});
            }
        }
        all_copies("relayout of q, k, v" + name, std::move(out));
        std::vector<kernel::copy_pair> back;
        const index_t all_tokens = bytes / row_bytes;
        next = 0;
        for (index_t rank = 0; rank < ranks; ++rank) {
            const latent_view message = dense(1, all_tokens, next);
            next += message.bytes();
            back.push_back({message, heads_of(all_tokens, rank, 0)});
        }
        all_copies("relayout of the result" + name, std::move(back));
    }

    /// Four parts that overlap by half of what is their own: stitched, and in a denoising step
    /// with one prediction of the past.
    void stitch(axis along, const extents5& extents, bool is_small) {
        const std::size_t cut = 2 + index_of(along);
        const index_t own = extents[cut] / 4;
        auto part_extents = extents;
        part_extents[cut] = own + own / 2;
        const std::vector<float> weights(static_cast<std::size_t>(part_extents[cut]), 0.5f);
        const latent_view output = tensor(0, extents);
        std::vector<kernel::stitch_part> parts;
        const index_t one = read_bytes(output);
        index_t touched = one;
        for (index_t k = 0; k < 4; ++k) {
            const latent_view part = tensor(1 + static_cast<std::size_t>(k % 3), part_extents,
                                            dtype::f32, k == 3 ? bytes / 2 : 0);
            // The last one moves back, so that all of it is read.
            const index_t begin = std::min(k * own, extents[cut] - part_extents[cut]);
            parts.push_back({part, begin, weights});
            touched += read_bytes(part);
        }
        const auto timed = [&](const std::string& what, index_t moved,
                               const std::function<void()>& work) {
            const std::string name = what + ", 4 parts along " + std::string(name_of(along)) +
                                     (is_small ? ", small" : "");
            is_small ? small(name, moved, work) : large(name, moved, work);
        };
        timed("stitch", touched, [=, this] { kernels_.stitch(output, along, parts, stream_); });
        const std::vector<const_latent_view> inputs{output, {}, tensor(4, extents)};
        const std::vector<latent_view> outputs{output};
        timed("stitch and step", touched + 2 * one, [=, this] {
            kernels_.stitch_combination({1, along, dtype::f32, parts}, inputs,
                                        std::array{0.5f, 0.3f, -0.2f}, outputs, stream_);
        });
    }

    void stitches() {
        for (const axis along : all_axes) stitch(along, whole, false);
    }

    void combinations() {
        const std::vector<const_latent_view> inputs{tensor(0, whole), tensor(1, whole),
                                                    tensor(2, whole)};
        const index_t one = read_bytes(inputs[0]);
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
        const index_t touched = 2 * read_bytes(output) + read_bytes(part) + 3 * lse.bytes();
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
                  read_bytes(inside) + written_bytes(dense),
                  [=, this] { kernels_.copy(inside, dense, stream_); });
        }
        for (const axis along : all_axes) stitch(along, wan, true);
        const std::vector<const_latent_view> inputs{all, tensor(1, wan), tensor(2, wan)};
        const std::vector<latent_view> outputs{all};
        small("linear_combination, 3 to 1, small", 4 * read_bytes(all), [=, this] {
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

int main(int argc, char** argv) {
    return gpu_benchmark::run(argc, argv, "cuda_kernels", 1, [](nlohmann::json& report) {
        benchmark all;
        all.run();
        report["rows"] = all.rows();
    });
}
