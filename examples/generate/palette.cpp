// SPDX-License-Identifier: Apache-2.0
// Cutting a colour histogram into a palette.
#include <generate/palette.hpp>

#include <algorithm>
#include <cmath>

namespace media {

namespace {

// Pixels that share the leading bits of their channels share a bin.
constexpr std::size_t bits = 6;
constexpr std::size_t bin_count = std::size_t{1} << (3 * bits);

std::size_t bin_of(const rgb& color) {
    std::size_t out = 0;
    for (const float channel : color) {
        const auto level = static_cast<std::size_t>(std::clamp(channel, 0.0f, 255.0f));
        out = (out << bits) | (level >> (8 - bits));
    }
    return out;
}

rgb center_of(std::size_t bin) {
    rgb out;
    for (std::size_t c = 3; c-- > 0; bin >>= bits) {
        const std::size_t level = bin & ((std::size_t{1} << bits) - 1);
        out[c] = (static_cast<float>(level) + 0.5f) * static_cast<float>(256 >> bits) - 0.5f;
    }
    return out;
}

/// Some pixels and their mean.
struct sample {
    rgb color{};
    float count = 0;
};

float squared_distance(const rgb& a, const rgb& b) {
    float sum = 0;
    for (std::size_t c = 0; c < 3; ++c) sum += (a[c] - b[c]) * (a[c] - b[c]);
    return sum;
}

std::uint8_t search(std::span<const rgb> colors, const rgb& wanted) {
    const auto best = std::ranges::min_element(
        colors, {}, [&](const rgb& candidate) { return squared_distance(candidate, wanted); });
    return static_cast<std::uint8_t>(best - colors.begin());
}

/// A run of samples, and where it varies most.
struct cluster {
    std::span<sample> samples;
    rgb mean{};
    std::size_t channel = 0;  ///< of the greatest spread
    double spread = 0;        ///< sum of squared deviations in that channel

    explicit cluster(std::span<sample> all) : samples(all) {
        double count = 0;
        std::array<double, 3> sum{};
        for (const sample& each : samples) {
            count += each.count;
            for (std::size_t c = 0; c < 3; ++c) sum[c] += double{each.count} * each.color[c];
        }
        for (std::size_t c = 0; c < 3; ++c) {
            mean[c] = static_cast<float>(sum[c] / count);
            double deviation = 0;
            for (const sample& each : samples) {
                deviation += each.count * std::pow(double{each.color[c]} - mean[c], 2);
            }
            if (deviation > spread) {
                spread = deviation;
                channel = c;
            }
        }
    }

    /// The samples below the mean of that channel come first; how many they are.
    std::size_t cut() {
        const auto above = std::partition(samples.begin(), samples.end(), [&](const sample& each) {
            return each.color[channel] < mean[channel];
        });
        return static_cast<std::size_t>(above - samples.begin());
    }
};

std::vector<rgb> cut(std::span<sample> samples, std::size_t size) {
    std::vector<cluster> clusters{cluster(samples)};
    while (clusters.size() < size) {
        const auto widest = std::ranges::max_element(clusters, {}, &cluster::spread);
        const std::size_t below = widest->cut();
        // All equal but for rounding: there are no more colours to tell apart.
        if (below == 0 || below == widest->samples.size()) break;
        const auto rest = widest->samples.subspan(below);
        *widest = cluster(widest->samples.first(below));
        clusters.emplace_back(rest);
    }
    std::vector<rgb> out;
    for (const cluster& each : clusters) out.push_back(each.mean);
    return out;
}

/// One round of Lloyd's algorithm: every colour moves to the mean of what is nearest to it.
void refine(std::span<rgb> colors, std::span<const sample> samples) {
    std::vector<std::array<double, 4>> sums(colors.size());
    for (const sample& each : samples) {
        auto& sum = sums[search(colors, each.color)];
        for (std::size_t c = 0; c < 3; ++c) sum[c] += double{each.count} * each.color[c];
        sum[3] += each.count;
    }
    for (std::size_t i = 0; i < colors.size(); ++i) {
        if (sums[i][3] == 0) continue;
        for (std::size_t c = 0; c < 3; ++c) {
            colors[i][c] = static_cast<float>(sums[i][c] / sums[i][3]);
        }
    }
}

}  // namespace

palette::palette(std::span<const std::uint8_t> pixels, std::size_t size)
    : bins_(bin_count), nearest_(bin_count, -1) {
    std::vector<std::array<double, 4>> histogram(bin_count);
    for (std::size_t i = 0; i + 2 < pixels.size(); i += 3) {
        const rgb color{float(pixels[i]), float(pixels[i + 1]), float(pixels[i + 2])};
        auto& sum = histogram[bin_of(color)];
        for (std::size_t c = 0; c < 3; ++c) sum[c] += color[c];
        ++sum[3];
    }
    // Where there are pixels, their mean stands for the bin: few colours are then met exactly.
    std::vector<sample> samples;
    for (std::size_t i = 0; i < bin_count; ++i) {
        bins_[i] = center_of(i);
        const auto& sum = histogram[i];
        if (sum[3] == 0) continue;
        for (std::size_t c = 0; c < 3; ++c) bins_[i][c] = static_cast<float>(sum[c] / sum[3]);
        samples.push_back({bins_[i], static_cast<float>(sum[3])});
    }

    colors_ = cut(samples, size);
    for (int round = 0; round < 4; ++round) refine(colors_, samples);
    // The file holds bytes, so these are the colours that are seen.
    for (rgb& color : colors_) {
        for (float& channel : color) channel = std::round(channel);
    }

    double squared = 0;
    double count = 0;
    for (const sample& each : samples) {
        squared += each.count * squared_distance(colors_[nearest(each.color)], each.color);
        count += each.count;
    }
    error_ = static_cast<float>(std::sqrt(squared / (3 * count)));
}

float palette::error_of(std::span<const std::uint8_t> pixels) {
    double squared = 0;
    for (std::size_t i = 0; i + 2 < pixels.size(); i += 3) {
        const rgb color{float(pixels[i]), float(pixels[i + 1]), float(pixels[i + 2])};
        squared += squared_distance(colors_[nearest(color)], color);
    }
    return static_cast<float>(std::sqrt(squared / static_cast<double>(pixels.size())));
}

std::uint8_t palette::nearest(const rgb& color) {
    const std::size_t bin = bin_of(color);
    if (nearest_[bin] < 0) nearest_[bin] = search(colors_, bins_[bin]);
    return static_cast<std::uint8_t>(nearest_[bin]);
}

}  // namespace media
