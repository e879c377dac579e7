// SPDX-License-Identifier: Apache-2.0
// A place to compute at that looks like a GPU, and refuses what would go wrong on one.
#pragma once

#include <latpar/comm/any_communicator.hpp>
#include <latpar/denoise/feature_cache.hpp>
#include <latpar/kernel/host.hpp>

#include <generate/on_host.hpp>
#include <wan/attention.hpp>
#include <wan/trunk.hpp>

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

/// Memory of the host that goes by the name of CUDA's: whoever takes it for the host's is refused by
/// those who know better, and every call that works on it must have the rank's stream.
namespace pretended {

using namespace latpar;

/// The stream of this thread's rank.
inline thread_local stream_ref own_stream{};

/// Errors: error for another stream.
inline void require_stream(stream_ref stream) {
    latpar::detail::require<error>(stream.handle && stream == own_stream,
                                   "a call on a device has not the stream of its rank");
}

/// What the host may work on. Errors: error unless it is the device's.
template <class View>
[[nodiscard]] View unveiled(View view) {
    latpar::detail::require<error>(!view.data || view.space == memory_space::cuda,
                                   "the host's memory was passed where a device works");
    view.space = memory_space::host;
    return view;
}
template <class View>
[[nodiscard]] std::vector<View> unveiled(std::span<const View> views) {
    std::vector<View> out;
    for (const View& view : views) out.push_back(unveiled(view));
    return out;
}

class kernels {
public:
    [[nodiscard]] memory_space space() const noexcept { return memory_space::cuda; }

    void copy(const_latent_view source, latent_view target, stream_ref stream = {}) const {
        require_stream(stream);
        host_.copy(unveiled(source), unveiled(target));
    }
    void copy_all(std::span<const kernel::copy_pair> copies, stream_ref stream = {}) const {
        for (const kernel::copy_pair& pair : copies) copy(pair.source, pair.target, stream);
    }
    void round(latent_view values, dtype type, stream_ref stream = {}) const {
        require_stream(stream);
        host_.round(unveiled(values), type);
    }
    void stitch(latent_view output, axis along, std::span<const kernel::stitch_part> parts,
                stream_ref stream = {}) const {
        require_stream(stream);
        host_.stitch(unveiled(output), along, unveiled_parts(parts));
    }
    void linear_combination(std::span<const const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latent_view> outputs, stream_ref stream = {}) const {
        require_stream(stream);
        host_.linear_combination(unveiled(inputs), coefficients, unveiled(outputs));
    }
    void stitch_combination(const kernel::stitched_input& stitched,
                            std::span<const const_latent_view> inputs,
                            std::span<const float> coefficients,
                            std::span<const latent_view> outputs, stream_ref stream = {}) const {
        require_stream(stream);
        const auto parts = unveiled_parts(stitched.parts);
        kernel::stitched_input here = stitched;
        here.parts = parts;
        host_.stitch_combination(here, unveiled(inputs), coefficients, unveiled(outputs));
    }
    void merge_attention(latent_view output, latent_view lse, const_latent_view part,
                         const_latent_view part_lse, stream_ref stream = {}) const {
        require_stream(stream);
        host_.merge_attention(unveiled(output), unveiled(lse), unveiled(part), unveiled(part_lse));
    }

private:
    [[nodiscard]] static std::vector<kernel::stitch_part> unveiled_parts(
        std::span<const kernel::stitch_part> parts) {
        std::vector<kernel::stitch_part> out(parts.begin(), parts.end());
        for (kernel::stitch_part& part : out) part.prediction = unveiled(part.prediction);
        return out;
    }

    kernel::host host_;
};
static_assert(kernel_set<kernels>);

class noise {
public:
    explicit noise(std::uint64_t seed) noexcept : noise_(seed) {}

    [[nodiscard]] std::string fingerprint() const { return noise_.fingerprint(); }
    void fill(latent_view out, const box& where, noise_key key, stream_ref stream = {}) const {
        require_stream(stream);
        noise_.fill(unveiled(out), where, key);
    }

private:
    philox_noise noise_;
};

/// Reaches the pretended memory.
class channel {
public:
    // A template, as in cuda::staged.
    template <std::same_as<any_communicator> Inner>
    explicit channel(Inner inner) : inner_(std::move(inner)) {}

    [[nodiscard]] int rank() const { return inner_.rank(); }
    [[nodiscard]] int size() const { return inner_.size(); }
    [[nodiscard]] bool reaches(memory_space) const noexcept { return true; }
    [[nodiscard]] any_request start_exchange(std::span<const send_op> sends,
                                             std::span<const recv_op> recvs,
                                             stream_ref stream = {}) {
        std::vector<send_op> out(sends.begin(), sends.end());
        std::vector<recv_op> in(recvs.begin(), recvs.end());
        const auto unveil = [&](auto& op) {
            if (op.space == memory_space::cuda) require_stream(stream);
            op.space = memory_space::host;
        };
        for (send_op& op : out) unveil(op);
        for (recv_op& op : in) unveil(op);
        return inner_.start_exchange(out, in, {});
    }
    [[nodiscard]] std::optional<channel> split(int color, int key) {
        auto part = inner_.split(color, key);
        if (!part) return std::nullopt;
        return channel(std::move(*part));
    }
    [[nodiscard]] channel duplicate() { return channel(inner_.duplicate()); }
    [[nodiscard]] std::vector<std::string> control_all_gather(std::string_view text) {
        return inner_.control_all_gather(text);
    }
    void abort(std::string_view reason) { inner_.abort(reason); }

private:
    any_communicator inner_;
};

/// The processor's, but policies that ask it for memory get the device's.
class executor : public wan::executor {
public:
    explicit executor(memory_source memory)
        : wan::executor(wan::executor_options{.threads = 1}), memory_(memory) {}
    [[nodiscard]] memory_source memory() const noexcept { return memory_; }

private:
    memory_source memory_;
};

class attention {
public:
    using executor = pretended::executor;

    explicit attention(std::shared_ptr<executor> exec) : local_(std::move(exec)) {}

    void operator()(wan::const_heads_view q, wan::const_heads_view k, wan::const_heads_view v,
                    wan::heads_view out, wan::lse_view lse = {}, stream_ref stream = {}) {
        require_stream(stream);
        local_(unveiled(q), unveiled(k), unveiled(v), unveiled(out), unveiled(lse));
    }

private:
    wan::local_attention local_;
};

/// The processor's trunk behind a GPU's face, without a feature cache.
class trunk : public wan::trunk {
public:
    using executor = pretended::executor;
    using feature_cache = latpar::feature_cache<kernels>;
    using local_attention = attention;
    static constexpr memory_space space = memory_space::cuda;

    trunk(std::shared_ptr<const wan::weights> model, std::shared_ptr<executor> exec,
          wan::positions where)
        : wan::trunk(std::move(model), std::move(exec), where) {}

    [[nodiscard]] wan::context prepare(const step_info& info, stream_ref stream) const {
        require_stream(stream);
        return wan::trunk::prepare(info, stream);
    }
    void embed(const_latent_view z, const wan::context& ctx, index_t sample, float* hidden,
               stream_ref stream) {
        require_stream(stream);
        wan::trunk::embed(unveiled(z), ctx, sample, hidden, stream);
    }
    [[nodiscard]] projected before_attention(index_t layer, wan::context& ctx, index_t sample,
                                             const float* hidden, feature_cache* cache,
                                             stream_ref stream) {
        require_stream(stream);
        latpar::detail::require(!cache, "there is no feature cache on a pretended device");
        auto out = wan::trunk::before_attention(layer, ctx, sample, hidden, nullptr, stream);
        out.q.space = out.k.space = out.v.space = out.out.space = memory_space::cuda;
        return out;
    }
    void after_attention(index_t layer, const wan::context& ctx, index_t sample, float* hidden,
                         stream_ref stream) {
        require_stream(stream);
        wan::trunk::after_attention(layer, ctx, sample, hidden, stream);
    }
    [[nodiscard]] basic_view<std::byte, 2> head(const wan::context& ctx, index_t sample,
                                                const float* hidden, stream_ref stream) {
        require_stream(stream);
        auto out = wan::trunk::head(ctx, sample, hidden, stream);
        out.space = memory_space::cuda;
        return out;
    }
    void unpatchify(const wan::context& ctx, index_t sample, latent_view prediction,
                    stream_ref stream) {
        require_stream(stream);
        wan::trunk::unpatchify(ctx, sample, unveiled(prediction), stream);
    }
};

/// See generate::on_host.
class place {
public:
    using trunk = pretended::trunk;
    using kernels = pretended::kernels;
    using noise = pretended::noise;

    place(any_communicator& world, const generate::job&, const generate::surroundings&)
        : place(world) {}

    [[nodiscard]] mesh<generate::communicator> mesh_of(const mesh_shape& shape) {
        return mesh<generate::communicator>(
            mesh<any_communicator>(mesh<channel>(mesh<any_communicator>(*world_, shape))));
    }
    [[nodiscard]] place alone(any_communicator& one) const { return place(one); }
    [[nodiscard]] memory_source memory() noexcept { return {&memory_, memory_space::cuda}; }
    [[nodiscard]] index_t peak_bytes() const noexcept { return memory_.peak_bytes(); }
    [[nodiscard]] stream_ref stream() noexcept { return {this}; }
    [[nodiscard]] std::shared_ptr<trunk::executor> executor() {
        return std::make_shared<trunk::executor>(memory());
    }
    [[nodiscard]] std::shared_ptr<const wan::weights> weights(
        std::shared_ptr<const wan::weights> loaded) {
        return loaded;
    }
    void synchronize() {}
    [[nodiscard]] latent to_host(const_latent_view from) {
        latent out(from.extents, from.type);
        kernel::host{}.copy(unveiled(from), out.view());
        return out;
    }
    void to_device(std::span<const std::byte> from, latent_view to) {
        std::copy(from.begin(), from.end(), unveiled(to).data);
    }
    [[nodiscard]] bool waits_for_messages() const noexcept { return false; }
    void describe(generate::report& figures) { figures.device = "pretended"; }
    void abort(std::string_view) {}

private:
    explicit place(any_communicator& world) : world_(&world) { own_stream = stream(); }

    any_communicator* world_;
    counting_resource memory_;
};

}  // namespace pretended
