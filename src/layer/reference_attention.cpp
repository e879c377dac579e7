// SPDX-License-Identifier: Apache-2.0
// Attention as plain loops.
#include <latpar/layer/reference_attention.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace latpar::inline v0::layer {
namespace {

template <class View>
double load(const View& view, index_t token, index_t head, index_t d) {
    return visit_floating(view.type, [&]<class T>() {
        return static_cast<double>(to_float(view.template as<T>()[view.offset({token, head, d})]));
    });
}

}  // namespace

void reference_attention::operator()(const_heads_view q, const_heads_view k, const_heads_view v,
                                     heads_view out, lse_view lse, stream_ref) const {
    const auto [queries, heads, head_dim] = q.extents;
    const auto [keys, key_heads, key_dim] = k.extents;
    latpar::detail::require(out.extents == q.extents && v.extents == k.extents &&
                                key_dim == head_dim && key_heads > 0 && heads % key_heads == 0,
                            "attention of queries [", queries, ", ", heads, ", ", head_dim,
                            "] over keys [", keys, ", ", key_heads, ", ", key_dim,
                            "]: head_dim must be the same, out as q, v as k, and heads a multiple "
                            "of key heads");
    latpar::detail::require(
        lse.data == nullptr || lse.extents == std::array<index_t, 2>{queries, heads}, "the lse of ",
        queries, " queries and ", heads, " heads must be of those extents");
    const double scale = 1 / std::sqrt(static_cast<double>(head_dim));
    std::vector<double> scores(static_cast<std::size_t>(keys));
    std::vector<double> sums(static_cast<std::size_t>(head_dim));
    for (index_t head = 0; head < heads; ++head) {
        const index_t key_head = head / (heads / key_heads);
        for (index_t i = 0; i < queries; ++i) {
            double most = -std::numeric_limits<double>::infinity();
            for (index_t j = 0; j < keys; ++j) {
                double dot = 0;
                for (index_t d = 0; d < head_dim; ++d) {
                    dot += load(q, i, head, d) * load(k, j, key_head, d);
                }
                scores[static_cast<std::size_t>(j)] = dot * scale;
                most = std::max(most, dot * scale);
            }
            double total = 0;
            std::fill(sums.begin(), sums.end(), 0.0);
            for (index_t j = 0; j < keys; ++j) {
                const double weight = std::exp(scores[static_cast<std::size_t>(j)] - most);
                total += weight;
                for (index_t d = 0; d < head_dim; ++d) {
                    sums[static_cast<std::size_t>(d)] += weight * load(v, j, key_head, d);
                }
            }
            for (index_t d = 0; d < head_dim; ++d) {
                const double mean = keys == 0 ? 0 : sums[static_cast<std::size_t>(d)] / total;
                visit_floating(out.type, [&]<class T>() {
                    out.as<T>()[out.offset({i, head, d})] = from_float<T>(static_cast<float>(mean));
                });
            }
            if (lse.data) {
                lse.as<float>()[lse.offset({i, head})] =
                    static_cast<float>(keys == 0 ? most : most + std::log(total));
            }
        }
    }
}

}  // namespace latpar::inline v0::layer
