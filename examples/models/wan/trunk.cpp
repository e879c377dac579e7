// SPDX-License-Identifier: Apache-2.0
// The transformer without its self-attention.
#include <wan/trunk.hpp>

#include <algorithm>
#include <cmath>

namespace wan {
namespace {

using latpar::const_latent_view;
using latpar::guidance_branch;
using latpar::latent_view;

const float* floats_in(const latpar::buffer& buffer) {
    return reinterpret_cast<const float*>(buffer.data());
}
float* floats_in(latpar::buffer& buffer) {
    return reinterpret_cast<float*>(buffer.data());
}

latpar::extents3 token_at(const latpar::extents3& grid, index_t token) {
    return {token / (grid[1] * grid[2]), token / grid[2] % grid[1], token % grid[2]};
}

// Calls f(position within the patch, element offset in channel 0 of the latent).
template <class View, class F>
void for_patch(const config& shape, const latpar::extents3& at, const View& like, F&& f) {
    const auto& [pt, ph, pw] = shape.patch_size;
    index_t position = 0;
    for (index_t t = 0; t < pt; ++t) {
        for (index_t h = 0; h < ph; ++h) {
            for (index_t w = 0; w < pw; ++w) {
                f(position++, like.offset({0, 0, at[0] * pt + t, at[1] * ph + h, at[2] * pw + w}));
            }
        }
    }
}

// Extends the tables of one axis to `count` positions.
void extend_rotary(context& ctx, const config& shape, std::size_t axis, index_t count) {
    const index_t pairs = shape.rotary_pairs()[axis];
    if (pairs == 0) return;
    for (index_t i = std::ssize(ctx.cosine[axis]) / pairs; i < count; ++i) {
        for (index_t pair = 0; pair < pairs; ++pair) {
            const double angle = shape.rotary_angle(axis, pair, ctx.origin[axis] + i);
            ctx.cosine[axis].push_back(static_cast<float>(std::cos(angle)));
            ctx.sine[axis].push_back(static_cast<float>(std::sin(angle)));
        }
    }
}

}  // namespace

template <class Task>
void trunk::for_row_blocks(index_t rows, index_t floats, const Task& task) {
    executor_->run((rows + row_block - 1) / row_block, floats, [&](index_t block, float* scratch) {
        const index_t first = block * row_block;
        task(first, std::min<index_t>(row_block, rows - first), scratch);
    });
}

void trunk::apply(const linear_weights& layer, const float* x, index_t rows, float* y) const {
    executor_->kernels().linear(x, rows, layer.in, layer.weight, layer.bias, layer.out, y);
}

void trunk::set_text(guidance_branch branch, std::span<const float> embeddings) {
    const index_t columns = shape().text_dim;
    const index_t w = shape().width();
    const index_t tokens = tokens_of(embeddings);
    text_state& out = texts_.at(static_cast<std::size_t>(branch));
    const kernel_table& kernels = executor_->kernels();

    float* const embedded = room<float>(out.embedded, tokens * w);
    for_row_blocks(tokens, row_block * w, [&](index_t row, index_t rows, float* scratch) {
        apply(weights_->text_1, embeddings.data() + row * columns, rows, scratch);
        kernels.gelu(scratch, rows * w);
        apply(weights_->text_2, scratch, rows, embedded + row * w);
    });
    out.k.resize(weights_->blocks.size());
    out.v.resize(weights_->blocks.size());
    for (index_t layer = weights_->layers.first; layer < weights_->layers.last; ++layer) {
        const auto& cross = block(layer).cross;
        float* const k = room<float>(out.k[static_cast<std::size_t>(layer)], tokens * w);
        float* const v = room<float>(out.v[static_cast<std::size_t>(layer)], tokens * w);
        for_row_blocks(tokens, 0, [&](index_t row, index_t rows, float*) {
            apply(cross.k, embedded + row * w, rows, k + row * w);
            kernels.rms_norm(k + row * w, rows, w, shape().eps, cross.norm_k, k + row * w);
            apply(cross.v, embedded + row * w, rows, v + row * w);
        });
    }
    out.tokens = tokens;
}

std::span<const float> trunk::embedded_text(guidance_branch branch) const {
    const text_state& out = text(branch);
    return {floats_in(out.embedded), static_cast<std::size_t>(out.tokens * shape().width())};
}

context trunk::prepare(const latpar::step_info& info, latpar::stream_ref) const {
    context out{place_tokens(shape(), info, positions_), {}, {}, {}};
    for (std::size_t axis = 0; axis < 3; ++axis) {
        extend_rotary(out, shape(), axis, out.grid[axis]);
    }

    const kernel_table& kernels = executor_->kernels();
    const index_t w = shape().width();
    const index_t half = shape().freq_dim / 2;
    for (const latpar::sample_info& from : info.samples) {
        static_cast<void>(text(from.branch));
        const std::vector<float> steps = timesteps_of(shape(), out, from);
        context::sample sample;
        sample.branch = from.branch;
        sample.frames = std::ssize(steps);
        std::vector<float> waves;
        for (const float step : steps) {
            for (const bool is_sine : {false, true}) {
                for (index_t i = 0; i < half; ++i) {
                    const float angle = step * shape().time_frequency(i);
                    waves.push_back(is_sine ? std::sin(angle) : std::cos(angle));
                }
            }
        }
        const auto count = static_cast<std::size_t>(sample.frames * w);
        std::vector<float> active(count);
        sample.time.resize(count);
        sample.time_projection.resize(6 * count);
        apply(weights_->time_1, waves.data(), sample.frames, active.data());
        kernels.silu(active.data(), std::ssize(active));
        apply(weights_->time_2, active.data(), sample.frames, sample.time.data());
        active = sample.time;
        kernels.silu(active.data(), std::ssize(active));
        apply(weights_->time_projection, active.data(), sample.frames,
              sample.time_projection.data());
        out.samples.push_back(std::move(sample));
    }
    return out;
}

void trunk::embed(const_latent_view z, const context& ctx, index_t sample, float* hidden,
                  latpar::stream_ref) {
    const std::vector<const_latent_view> parts =
        embedded_latents(shape(), ctx, z, std::ssize(ctx.samples), space);
    const linear_weights& embedding = patch_embedding();
    const index_t columns = embedding.in;
    for_row_blocks(
        ctx.tokens(), row_block * columns, [&](index_t first, index_t rows, float* scratch) {
            float* to = scratch;
            for (const const_latent_view& part : parts) {
                latpar::visit_floating(part.type, [&]<class T>() {
                    const T* const from = part.as<T>() + sample * part.strides[0];
                    const index_t step = shape().patch_volume();
                    for (index_t row = 0; row < rows; ++row) {
                        const auto at = token_at(ctx.grid, ctx.begin + first + row);
                        for_patch(shape(), at, part, [&](index_t position, index_t offset) {
                            float* cell = to + row * columns + position;
                            for (index_t c = 0; c < part.extents[1]; ++c) {
                                cell[c * step] =
                                    latpar::to_float(from[offset + c * part.strides[1]]);
                            }
                        });
                    }
                    to += part.extents[1] * step;
                });
            }
            apply(embedding, scratch, rows, hidden + first * shape().width());
        });
}

void trunk::modulate(std::span<const float> table, std::span<const float> time, index_t period,
                     std::initializer_list<int> scales) {
    // `time` repeats every `period` vectors of the table: one for all in the head.
    const index_t w = shape().width();
    const index_t vectors = std::ssize(table) / w;
    const index_t frames = std::ssize(time) / (period * w);
    vectors_ = vectors;
    modulation_.resize(static_cast<std::size_t>(frames * vectors * w));
    float* to = modulation_.data();
    for (index_t frame = 0; frame < frames; ++frame) {
        for (index_t vector = 0; vector < vectors; ++vector, to += w) {
            const float* fixed = table.data() + vector * w;
            const float* moving = time.data() + (frame * period + vector % period) * w;
            const bool is_scale = std::ranges::find(scales, vector) != scales.end();
            for (index_t i = 0; i < w; ++i) to[i] = fixed[i] + moving[i] + (is_scale ? 1.0f : 0.0f);
        }
    }
}

// Calls f(row, rows, frame) for the runs of rows that share a modulation.
template <class F>
void trunk::for_frames(const context& ctx, index_t frames, index_t row, index_t rows, F&& f) const {
    const index_t area = ctx.grid[1] * ctx.grid[2];
    const index_t end = row + rows;
    while (row < end) {
        const index_t frame = frames == 1 ? 0 : (ctx.begin + row) / area;
        const index_t stop = frames == 1 ? end : std::min(end, (frame + 1) * area - ctx.begin);
        f(row, stop - row, frame);
        row = stop;
    }
}

const float* trunk::modulation(index_t frame, int vector) const {
    return modulation_.data() + (frame * vectors_ + vector) * shape().width();
}

void trunk::normalize(const context& ctx, index_t frames, const float* hidden, index_t first,
                      index_t rows, int scale, int shift, float* out) const {
    const index_t w = shape().width();
    for_frames(ctx, frames, first, rows, [&](index_t row, index_t count, index_t frame) {
        executor_->kernels().layer_norm(hidden + row * w, count, w, shape().eps,
                                        modulation(frame, scale), modulation(frame, shift),
                                        out + (row - first) * w);
    });
}

void trunk::add(const context& ctx, index_t frames, float* hidden, const float* change,
                index_t first, index_t rows, int gate) const {
    const index_t w = shape().width();
    for_frames(ctx, frames, first, rows, [&](index_t row, index_t count, index_t frame) {
        executor_->kernels().add_gated(hidden + row * w, change + (row - first) * w,
                                       modulation(frame, gate), count, w);
    });
}

// `scratch` has head_dim floats.
void trunk::rotate(const context& ctx, float* rows, index_t first_token, index_t count,
                   float* scratch) const {
    const latpar::extents3 pairs = shape().rotary_pairs();
    float* const sines = scratch + shape().attention_head_dim / 2;
    for (index_t i = 0; i < count; ++i) {
        const latpar::extents3 at = token_at(ctx.grid, first_token + i);
        index_t next = 0;
        for (std::size_t axis = 0; axis < 3; ++axis) {
            const index_t from = at[axis] * pairs[axis];
            std::copy_n(ctx.cosine[axis].data() + from, pairs[axis], scratch + next);
            std::copy_n(ctx.sine[axis].data() + from, pairs[axis], sines + next);
            next += pairs[axis];
        }
        executor_->kernels().rotate(rows + i * shape().width(), shape().num_attention_heads,
                                    shape().attention_head_dim, scratch, sines);
    }
}

// Keys and values of another window go behind those of this one, at the next frames' positions.
void trunk::lend(context& ctx, const feature_cache& cache, const latpar::feature_key& key,
                 const block_weights& weights, float* keys, float* values) {
    const index_t w = shape().width();
    const latpar::feature_rows stored = cache.rows(key);
    check_lent(shape(), ctx, stored);
    extend_rotary(ctx, shape(), 0, ctx.grid[0] + stored.grid[0]);
    const index_t behind = latpar::volume_of(ctx.grid) + stored.first;
    for_row_blocks(
        stored.count(), shape().attention_head_dim, [&](index_t row, index_t rows, float* scratch) {
            float* const k = keys + row * w;
            const std::array<index_t, 2> part{rows, w};
            cache.gather(key, stored.first + row, latpar::make_view(k, part),
                         latpar::make_view(values + row * w, part));
            executor_->kernels().rms_norm(k, rows, w, shape().eps, weights.self.norm_k, k);
            rotate(ctx, k, behind + row, rows, scratch);
        });
}

trunk::projected trunk::before_attention(index_t layer, context& ctx, index_t sample,
                                         const float* hidden, feature_cache* cache,
                                         latpar::stream_ref) {
    const block_weights& weights = block(layer);
    const context::sample& at = ctx.samples[static_cast<std::size_t>(sample)];
    const kernel_table& kernels = executor_->kernels();
    const index_t w = shape().width();
    const index_t tokens = ctx.tokens();
    modulate({weights.modulation, static_cast<std::size_t>(6 * w)}, at.time_projection, 6,
             {attention_scale, ffn_scale});

    const latpar::feature_key key{layer, at.branch};
    const index_t lent = cache ? cache->rows(key).count() : 0;
    const projected out = room_for_attention(tokens, lent);
    float* const q = floats_in(q_);
    float* const k = floats_in(k_);
    float* const v = floats_in(v_);
    if (lent > 0) lend(ctx, *cache, key, weights, k + tokens * w, v + tokens * w);

    const latpar::feature_rows kept =
        cache ? begin_entry(ctx, *cache, key) : latpar::feature_rows{};
    const index_t kept_from = kept.origin - ctx.begin;
    const auto keep = [&](index_t first, index_t count) {
        const index_t begin = std::max(first, kept_from + kept.first);
        const index_t end = std::min(first + count, kept_from + kept.last);
        if (begin >= end) return;
        const std::array<index_t, 2> part{end - begin, w};
        cache->append(key, begin - kept_from, latpar::make_view(k + begin * w, part),
                      latpar::make_view(v + begin * w, part));
    };

    for_row_blocks(
        tokens, row_block * w + shape().attention_head_dim,
        [&](index_t row, index_t rows, float* scratch) {
            float* const table = scratch + row_block * w;
            normalize(ctx, at.frames, hidden, row, rows, attention_scale, attention_shift, scratch);
            apply(weights.self.q, scratch, rows, q + row * w);
            kernels.rms_norm(q + row * w, rows, w, shape().eps, weights.self.norm_q, q + row * w);
            rotate(ctx, q + row * w, ctx.begin + row, rows, table);
            apply(weights.self.k, scratch, rows, k + row * w);
            apply(weights.self.v, scratch, rows, v + row * w);
            keep(row, rows);  // before the keys' norm
            kernels.rms_norm(k + row * w, rows, w, shape().eps, weights.self.norm_k, k + row * w);
            rotate(ctx, k + row * w, ctx.begin + row, rows, table);
        });

    return out;
}

void trunk::after_attention(index_t layer, const context& ctx, index_t sample, float* hidden,
                            latpar::stream_ref) {
    const block_weights& weights = block(layer);
    const context::sample& at = ctx.samples[static_cast<std::size_t>(sample)];
    const text_state& words = text(at.branch);
    const kernel_table& kernels = executor_->kernels();
    const index_t w = shape().width();
    const index_t dim = shape().attention_head_dim;
    const index_t wide = std::max(w, shape().ffn_dim);
    const float* const attended = floats_in(out_);

    attention_tile cross{};
    cross.q_stride = cross.k_stride = cross.v_stride = cross.out_stride = w;
    cross.keys = words.tokens;
    cross.head_dim = dim;
    cross.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const float* const text_keys = floats_in(words.k[static_cast<std::size_t>(layer)]);
    const float* const text_values = floats_in(words.v[static_cast<std::size_t>(layer)]);

    for_row_blocks(ctx.tokens(), row_block * (w + wide) + attention_scratch(dim),
                   [&](index_t row, index_t rows, float* scratch) {
                       float* const x = hidden + row * w;
                       float* const narrow = scratch;
                       float* const broad = narrow + row_block * w;
                       apply(weights.self.out, attended + row * w, rows, narrow);
                       add(ctx, at.frames, hidden, narrow, row, rows, attention_gate);

                       kernels.layer_norm(x, rows, w, shape().eps, weights.norm2_weight,
                                          weights.norm2_bias, narrow);
                       apply(weights.cross.q, narrow, rows, broad);
                       kernels.rms_norm(broad, rows, w, shape().eps, weights.cross.norm_q, broad);
                       attention_tile tile = cross;
                       tile.queries = rows;
                       tile.scratch = broad + row_block * wide;
                       for (index_t head = 0; head < shape().num_attention_heads; ++head) {
                           tile.q = broad + head * dim;
                           tile.k = text_keys + head * dim;
                           tile.v = text_values + head * dim;
                           tile.out = narrow + head * dim;
                           kernels.attend(tile);
                       }
                       apply(weights.cross.out, narrow, rows, broad);
                       kernels.add_gated(x, broad, nullptr, rows, w);

                       normalize(ctx, at.frames, hidden, row, rows, ffn_scale, ffn_shift, narrow);
                       apply(weights.ffn_up, narrow, rows, broad);
                       kernels.gelu(broad, rows * shape().ffn_dim);
                       apply(weights.ffn_down, broad, rows, narrow);
                       add(ctx, at.frames, hidden, narrow, row, rows, ffn_gate);
                   });
}

latpar::basic_view<std::byte, 2> trunk::head(const context& ctx, index_t sample,
                                             const float* hidden, latpar::stream_ref) {
    const context::sample& at = ctx.samples[static_cast<std::size_t>(sample)];
    const linear_weights& projection = head_projection();
    const index_t w = shape().width();
    const index_t columns = projection.out;
    const index_t all = latpar::volume_of(ctx.grid);
    modulate({weights_->head_modulation, static_cast<std::size_t>(2 * w)}, at.time, 1,
             {head_scale});
    float* const patches = room<float>(patches_, all * columns);
    for_row_blocks(ctx.tokens(), row_block * w, [&](index_t row, index_t rows, float* scratch) {
        normalize(ctx, at.frames, hidden, row, rows, head_scale, head_shift, scratch);
        apply(projection, scratch, rows, patches + (ctx.begin + row) * columns);
    });
    return latpar::make_view(patches, std::array<index_t, 2>{all, columns});
}

void trunk::unpatchify(const context& ctx, index_t sample, latent_view prediction,
                       latpar::stream_ref) {
    check_prediction(shape(), ctx, prediction, std::ssize(ctx.samples), space);
    const index_t channels = shape().out_channels;
    const index_t columns = weights_->head.out;
    const float* const patches = floats_in(patches_);
    latpar::visit_floating(prediction.type, [&]<class T>() {
        T* const to = prediction.as<T>() + sample * prediction.strides[0];
        for_row_blocks(latpar::volume_of(ctx.grid), 0, [&](index_t first, index_t rows, float*) {
            for (index_t row = first; row < first + rows; ++row) {
                for_patch(shape(), token_at(ctx.grid, row), prediction,
                          [&](index_t position, index_t offset) {
                              const float* from = patches + row * columns + position * channels;
                              for (index_t c = 0; c < channels; ++c) {
                                  to[offset + c * prediction.strides[1]] =
                                      latpar::from_float<T>(from[c]);
                              }
                          });
            }
        });
    });
}

}  // namespace wan
