// SPDX-License-Identifier: Apache-2.0
// The transformer without its self-attention, on a GPU.
#include <latpar/cuda/device.hpp>
#include <latpar/cuda/stream.hpp>

#include <wan/cuda/kernels.hpp>
#include <wan/cuda/trunk.hpp>

#include <algorithm>

namespace wan::cuda {
namespace {

using latpar::const_latent_view;
using latpar::dtype;
using latpar::guidance_branch;
using latpar::latent_view;
using latpar::memory_space;
using latpar::stream_ref;
using latpar::detail::require;

template <class Byte, std::size_t Rank>
latpar::basic_view<Byte, Rank> device_view(Byte* data, const std::array<index_t, Rank>& extents,
                                           dtype type) {
    return {data, extents, latpar::dense_strides(extents), type, memory_space::cuda};
}

latent_view row_view(std::byte* data, index_t elements, dtype type) {
    return device_view(data, std::array<index_t, 5>{1, 1, 1, 1, elements}, type);
}

}  // namespace

trunk::trunk(std::shared_ptr<const weights> model, std::shared_ptr<executor> exec, positions where)
    : basic_trunk(std::move(model), std::move(exec), where) {
    require(weights_->type == executor_->type(), "weights of ", name_of(weights_->type),
            " were given an executor of ", name_of(executor_->type()),
            "; upload them as that, or make the executor for theirs");
    require(shape().attention_head_dim <= largest_head, "a model with heads of ",
            shape().attention_head_dim, " was given; on a GPU those of up to ", largest_head,
            " are computed");
}

index_t trunk::row_bytes(index_t columns) const noexcept {
    return columns * size_of(type());
}

std::byte* trunk::rows(latpar::buffer& buffer, index_t count, index_t columns) {
    return room<std::byte>(buffer, count * row_bytes(columns));
}

void trunk::set_text(guidance_branch branch, std::span<const float> embeddings) {
    const index_t columns = shape().text_dim;
    const index_t w = shape().width();
    const index_t tokens = tokens_of(embeddings);
    text_state& out = texts_.at(static_cast<std::size_t>(branch));
    const stream_ref stream{};
    // Calls on any stream may still read the text before.
    wait_for_device();

    // The text as it comes, as the model's type, and after its first layer.
    const index_t elements = tokens * columns;
    const latpar::buffer raw(4 * elements, executor_->memory());
    const latpar::buffer converted(row_bytes(elements), executor_->memory());
    const latpar::buffer inner(row_bytes(tokens * w), executor_->memory());
    latpar::cuda::copy_bytes(raw.data(), embeddings.data(), 4 * elements, stream);
    latpar::cuda::kernels{}.copy(row_view(raw.data(), elements, dtype::f32),
                                 row_view(converted.data(), elements, type()), stream);
    std::byte* const embedded = rows(out.embedded, tokens, w);
    executor_->multiply(weights_->text_1, converted.data(), tokens, inner.data(), stream);
    add_bias_gelu(inner.data(), tokens, w, type(), weights_->text_1.bias, stream);
    executor_->multiply(weights_->text_2, inner.data(), tokens, embedded, stream);
    add_bias(embedded, tokens, w, type(), weights_->text_2.bias, stream);

    out.k.resize(weights_->blocks.size());
    out.v.resize(weights_->blocks.size());
    for (index_t layer = weights_->layers.first; layer < weights_->layers.last; ++layer) {
        const auto& cross = block(layer).cross;
        std::byte* const k = rows(out.k[static_cast<std::size_t>(layer)], tokens, w);
        std::byte* const v = rows(out.v[static_cast<std::size_t>(layer)], tokens, w);
        executor_->multiply(cross.k, embedded, tokens, k, stream);
        normalize_heads(k, tokens, w, shape().attention_head_dim, type(), cross.k.bias,
                        cross.norm_k, shape().eps, {}, stream);
        executor_->multiply(cross.v, embedded, tokens, v, stream);
        add_bias(v, tokens, w, type(), cross.v.bias, stream);
    }
    latpar::cuda::synchronize(stream);
    out.tokens = tokens;
}

std::vector<float> trunk::embedded_text(guidance_branch branch) const {
    const text_state& from = text(branch);
    const index_t elements = from.tokens * shape().width();
    const latpar::buffer converted(4 * elements, executor_->memory());
    latpar::cuda::kernels{}.copy(row_view(from.embedded.data(), elements, type()),
                                 row_view(converted.data(), elements, dtype::f32));
    std::vector<float> out(static_cast<std::size_t>(elements));
    latpar::cuda::copy_bytes(out.data(), converted.data(), 4 * elements);
    return out;
}

// Memory that no context has.
std::shared_ptr<const latpar::buffer> trunk::time_memory(index_t floats) {
    const auto is_free = [](const auto& one) { return one.use_count() == 1; };
    auto found = std::ranges::find_if(times_, is_free);
    if (found == times_.end()) {
        times_.push_back(std::make_shared<latpar::buffer>());
        found = times_.end() - 1;
    }
    static_cast<void>(room<float>(**found, floats));
    return *found;
}

context trunk::prepare(const latpar::step_info& info, stream_ref stream) {
    context out{place_tokens(shape(), info, positions_), {}, {}};
    std::vector<float> times;
    for (const latpar::sample_info& from : info.samples) {
        static_cast<void>(text(from.branch));
        require(!timesteps_ || from.frame_timesteps.empty(),
                "frame timesteps were passed while timesteps come from device memory, one for each "
                "sample; call set_device_timesteps(nullptr) first");
        const std::vector<float> steps = timesteps_of(shape(), out, from);
        out.samples.push_back({from.branch, std::ssize(steps)});
        times.insert(times.end(), steps.begin(), steps.end());
    }

    const index_t w = shape().width();
    const index_t frequencies = shape().freq_dim;
    const auto count = static_cast<index_t>(times.size());
    // Every part begins where four floats are read at once.
    const auto padded = [](index_t floats) { return (floats + 3) / 4 * 4; };
    out.times = time_memory(padded(count) + padded(count * frequencies) + 2 * padded(count * w) +
                            padded(6 * count * w));
    float* const values = reinterpret_cast<float*>(out.times->data());
    float* const waves = values + padded(count);
    float* const active = waves + padded(count * frequencies);
    float* const time = active + padded(count * w);
    float* const projection = time + padded(count * w);
    if (!timesteps_) store_values(times, values, stream);
    time_waves(timesteps_ ? timesteps_ : values, count, weights_->frequencies, frequencies / 2,
               waves, stream);
    const auto apply = [&](const linear_weights& layer, const float* x, float* y, bool is_silu) {
        small_linear(x, count, layer.in, layer.weight, type(), layer.bias, layer.out, y, is_silu,
                     stream);
    };
    apply(weights_->time_1, waves, active, false);
    apply(weights_->time_2, active, time, true);
    apply(weights_->time_projection, time, projection, true);
    index_t first = 0;
    for (context::sample& sample : out.samples) {
        sample.time = time + first * w;
        sample.time_projection = projection + 6 * first * w;
        first += sample.frames;
    }
    return out;
}

void trunk::embed(const_latent_view z, const context& ctx, index_t sample, float* hidden,
                  stream_ref stream) {
    const std::vector<const_latent_view> parts =
        embedded_latents(shape(), ctx, z, std::ssize(ctx.samples), space);
    const linear_weights& embedding = patch_embedding();
    const index_t columns = embedding.in;
    std::byte* const patches = rows(wide_, ctx.tokens(), columns);
    index_t column = 0;
    for (const const_latent_view& part : parts) {
        gather_patches(part, sample, {shape().patch_size, ctx.grid}, ctx.begin, ctx.tokens(),
                       patches, type(), columns, column, stream);
        column += part.extents[1] * shape().patch_volume();
    }
    fill_rows(hidden, ctx.tokens(), shape().width(), embedding.bias, stream);
    executor_->multiply_add(embedding, patches, ctx.tokens(), hidden, stream);
}

// What changes the hidden rows of a sample, or only reads them, without either yet.
row_update trunk::update_of(const context& ctx, const context::sample& at,
                            const float* hidden) const {
    row_update out{};
    out.hidden = const_cast<float*>(hidden);  // written where there is a change only
    out.rows = ctx.tokens();
    out.width = shape().width();
    out.eps = shape().eps;
    out.type = type();
    out.first = ctx.begin;
    out.area = at.frames == 1 ? 0 : ctx.grid[1] * ctx.grid[2];
    return out;
}

// Token first + row of the window, for each row.
rotation trunk::rotation_of(const context& ctx, index_t first) const {
    return {weights_->rotary, shape().rotary_pairs(), ctx.grid, ctx.origin, first};
}

// Keys and values of another window go behind those of this one, at the next frames' positions.
void trunk::lend(const context& ctx, const feature_cache& cache, const latpar::feature_key& key,
                 const block_weights& weights, std::byte* keys, std::byte* values,
                 stream_ref stream) const {
    const index_t w = shape().width();
    const latpar::feature_rows stored = cache.rows(key);
    check_lent(shape(), ctx, stored);
    const std::array<index_t, 2> all{stored.count(), w};
    cache.gather(key, stored.first, device_view(keys, all, type()),
                 device_view(values, all, type()), stream);
    normalize_heads(keys, stored.count(), w, shape().attention_head_dim, type(), nullptr,
                    weights.self.norm_k, shape().eps,
                    rotation_of(ctx, latpar::volume_of(ctx.grid) + stored.first), stream);
}

trunk::projected trunk::before_attention(index_t layer, const context& ctx, index_t sample,
                                         const float* hidden, feature_cache* cache,
                                         stream_ref stream) {
    const block_weights& weights = block(layer);
    const context::sample& at = ctx.samples[static_cast<std::size_t>(sample)];
    const index_t w = shape().width();
    const index_t dim = shape().attention_head_dim;
    const index_t tokens = ctx.tokens();

    const latpar::feature_key key{layer, at.branch};
    const index_t lent = cache ? cache->rows(key).count() : 0;
    const projected out = room_for_attention(tokens, lent);
    std::byte* const q = q_.data();
    std::byte* const k = k_.data();
    std::byte* const v = v_.data();
    std::byte* const normal = rows(rows_, tokens, w);
    if (lent > 0) {
        lend(ctx, *cache, key, weights, k + tokens * row_bytes(w), v + tokens * row_bytes(w),
             stream);
    }

    row_update norm = update_of(ctx, at, hidden);
    norm.out = normal;
    norm.stride = 6 * w;
    norm.one = 1.0f;
    norm.multiply = {weights.modulation + attention_scale * w,
                     at.time_projection + attention_scale * w};
    norm.add = {weights.modulation + attention_shift * w, at.time_projection + attention_shift * w};
    update_rows(norm, stream);

    executor_->multiply(weights.self.q, normal, tokens, q, stream);
    normalize_heads(q, tokens, w, dim, type(), weights.self.q.bias, weights.self.norm_q,
                    shape().eps, rotation_of(ctx, ctx.begin), stream);
    executor_->multiply(weights.self.k, normal, tokens, k, stream);
    executor_->multiply(weights.self.v, normal, tokens, v, stream);
    add_bias(v, tokens, w, type(), weights.self.v.bias, stream);

    const float* key_bias = weights.self.k.bias;
    if (cache) {
        const latpar::feature_rows kept = begin_entry(ctx, *cache, key);
        if (kept.count() > 0) {  // before the keys' norm
            add_bias(k, tokens, w, type(), key_bias, stream);
            key_bias = nullptr;
            const index_t skip = (kept.origin + kept.first - ctx.begin) * row_bytes(w);
            const std::array<index_t, 2> part{kept.count(), w};
            cache->append(key, kept.first, device_view(k + skip, part, type()),
                          device_view(v + skip, part, type()), stream);
        }
    }
    normalize_heads(k, tokens, w, dim, type(), key_bias, weights.self.norm_k, shape().eps,
                    rotation_of(ctx, ctx.begin), stream);

    return out;
}

void trunk::after_attention(index_t layer, const context& ctx, index_t sample, float* hidden,
                            stream_ref stream) {
    const block_weights& weights = block(layer);
    const context::sample& at = ctx.samples[static_cast<std::size_t>(sample)];
    const text_state& words = text(at.branch);
    const index_t w = shape().width();
    const index_t heads = shape().num_attention_heads;
    const index_t dim = shape().attention_head_dim;
    const index_t tokens = ctx.tokens();
    const auto moving = [&](int vector) {
        return token_vector{weights.modulation + vector * w, at.time_projection + vector * w};
    };
    // The queries are spent: their memory serves for what changes the hidden rows.
    std::byte* const change = rows(q_, tokens, w);
    std::byte* const attended = rows(out_, tokens, w);
    std::byte* const normal = rows(rows_, tokens, w);
    std::byte* const wide = rows(wide_, tokens, shape().ffn_dim);

    executor_->multiply(weights.self.out, attended, tokens, change, stream);
    row_update update = update_of(ctx, at, hidden);
    update.stride = 6 * w;
    update.change = change;
    update.bias = weights.self.out.bias;
    update.gate = moving(attention_gate);
    update.out = normal;
    update.multiply = {weights.norm2_weight};
    update.add = {weights.norm2_bias};
    update_rows(update, stream);

    executor_->multiply(weights.cross.q, normal, tokens, change, stream);
    normalize_heads(change, tokens, w, dim, type(), weights.cross.q.bias, weights.cross.norm_q,
                    shape().eps, {}, stream);
    const auto slot = static_cast<std::size_t>(layer);
    const std::array<index_t, 3> own{tokens, heads, dim};
    const std::array<index_t, 3> keys{words.tokens, heads, dim};
    cross_(device_view(change, own, type()), device_view(words.k[slot].data(), keys, type()),
           device_view(words.v[slot].data(), keys, type()), device_view(attended, own, type()), {},
           stream);
    executor_->multiply(weights.cross.out, attended, tokens, change, stream);
    update.bias = weights.cross.out.bias;
    update.gate = {};
    update.one = 1.0f;
    update.multiply = moving(ffn_scale);
    update.add = moving(ffn_shift);
    update_rows(update, stream);

    executor_->multiply(weights.ffn_up, normal, tokens, wide, stream);
    add_bias_gelu(wide, tokens, shape().ffn_dim, type(), weights.ffn_up.bias, stream);
    executor_->multiply(weights.ffn_down, wide, tokens, change, stream);
    update.bias = weights.ffn_down.bias;
    update.gate = moving(ffn_gate);
    update.out = nullptr;
    update_rows(update, stream);
}

latpar::basic_view<std::byte, 2> trunk::head(const context& ctx, index_t sample,
                                             const float* hidden, stream_ref stream) {
    const context::sample& at = ctx.samples[static_cast<std::size_t>(sample)];
    const linear_weights& projection = head_projection();
    const index_t w = shape().width();
    const index_t columns = projection.out;
    const index_t all = latpar::volume_of(ctx.grid);
    std::byte* const normal = rows(rows_, ctx.tokens(), w);
    float* const patches = room<float>(patches_, all * columns);
    row_update norm = update_of(ctx, at, hidden);
    norm.out = normal;
    norm.stride = w;
    norm.one = 1.0f;
    norm.multiply = {weights_->head_modulation + head_scale * w, at.time};
    norm.add = {weights_->head_modulation + head_shift * w, at.time};
    update_rows(norm, stream);
    float* const own = patches + ctx.begin * columns;
    fill_rows(own, ctx.tokens(), columns, projection.bias, stream);
    executor_->multiply_add(projection, normal, ctx.tokens(), own, stream);
    return latpar::make_view(patches, std::array<index_t, 2>{all, columns}, space);
}

void trunk::unpatchify(const context& ctx, index_t sample, latent_view prediction,
                       stream_ref stream) {
    check_prediction(shape(), ctx, prediction, std::ssize(ctx.samples), space);
    scatter_patches(reinterpret_cast<const float*>(patches_.data()), {shape().patch_size, ctx.grid},
                    prediction, sample, stream);
}

}  // namespace wan::cuda
