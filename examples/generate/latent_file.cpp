// SPDX-License-Identifier: Apache-2.0
// A latent that is written as its frames come.
#include <latpar/core/error.hpp>

#include <generate/latent_file.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <utility>

namespace generate {

using latpar::index_t;
using latpar::detail::require;

latent_file::latent_file(std::filesystem::path path, const std::array<index_t, 5>& extents,
                         std::map<std::string, std::string> metadata)
    : path_(std::move(path)),
      temporary_(path_.string() + ".tmp." + std::to_string(getpid())),
      extents_(extents),
      metadata_(std::move(metadata)),
      frame_(static_cast<std::size_t>(extents[3] * extents[4])) {}

latent_file::~latent_file() {
    if (!file_.is_open()) return;
    file_.close();
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
}

void latent_file::add(latpar::const_latent_view frames) {
    const auto [samples, channels, count, height, width] = frames.extents;
    require(samples == 1 && channels == extents_[1] && height == extents_[3] &&
                width == extents_[4] && frames_ + count <= extents_[2],
            "frames of ", samples, 'x', channels, 'x', count, 'x', height, 'x', width,
            " do not fit behind ", frames_, " of a latent of ", extents_[1], 'x', extents_[2], 'x',
            extents_[3], 'x', extents_[4]);
    if (!file_.is_open()) begin();
    const float* const from = frames.as<float>();
    for (index_t c = 0; c < channels; ++c) {
        file_.seekp(position_of(c, frames_));
        for (index_t t = 0; t < count; ++t) {
            float* to = frame_.data();
            for (index_t h = 0; h < height; ++h) {
                for (index_t w = 0; w < width; ++w) *to++ = from[frames.offset({0, c, t, h, w})];
            }
            file_.write(reinterpret_cast<const char*>(frame_.data()),
                        std::ssize(frame_) * static_cast<std::streamoff>(sizeof(float)));
        }
    }
    require_good();
    frames_ += count;
}

void latent_file::close() {
    if (!file_.is_open()) return;
    if (frames_ < extents_[2]) move_channels_together();
    file_.flush();
    require_good();
    std::error_code problem;
    std::filesystem::rename(temporary_, path_, problem);
    require<latpar::io_error>(!problem, path_.string(), " cannot be written: ", problem.message());
    file_.close();
}

std::string latent_file::header() const {
    const index_t bytes =
        extents_[1] * extents_[2] * extents_[3] * extents_[4] * index_t{sizeof(float)};
    const nlohmann::json content{
        {"__metadata__", metadata_},
        {"latent", {{"dtype", "F32"}, {"shape", extents_}, {"data_offsets", {0, bytes}}}}};
    std::string out = content.dump();
    // Room for as much as there was at first: spaces may follow.
    out.resize(std::max(header_bytes_, (out.size() + 7) / 8 * 8), ' ');
    return out;
}

std::streamoff latent_file::position_of(index_t channel, index_t frame) const {
    const index_t frames = channel * extents_[2] + frame;
    return static_cast<std::streamoff>(sizeof(std::uint64_t) + header_bytes_ +
                                       static_cast<std::size_t>(frames) * frame_.size() *
                                           sizeof(float));
}

void latent_file::begin() {
    static_assert(std::endian::native == std::endian::little);
    file_.open(temporary_, std::ios::in | std::ios::out | std::ios::trunc | std::ios::binary);
    const std::string text = header();
    header_bytes_ = text.size();
    const std::uint64_t size = header_bytes_;
    file_.write(reinterpret_cast<const char*>(&size), sizeof(size));
    file_.write(text.data(), std::ssize(text));
    require_good();
}

void latent_file::move_channels_together() {
    auto fewer = extents_;
    fewer[2] = frames_;
    const auto bytes = std::ssize(frame_) * static_cast<std::streamoff>(sizeof(float));
    for (index_t c = 0; c < extents_[1]; ++c) {
        for (index_t t = 0; t < frames_; ++t) {
            file_.seekg(position_of(c, t));
            file_.read(reinterpret_cast<char*>(frame_.data()), bytes);
            std::swap(extents_, fewer);
            file_.seekp(position_of(c, t));
            std::swap(extents_, fewer);
            file_.write(reinterpret_cast<const char*>(frame_.data()), bytes);
        }
    }
    extents_ = fewer;
    file_.seekp(sizeof(std::uint64_t));
    const std::string text = header();
    file_.write(text.data(), std::ssize(text));
    file_.flush();
    std::error_code problem;
    std::filesystem::resize_file(temporary_,
                                 static_cast<std::uintmax_t>(position_of(extents_[1], 0)), problem);
    require<latpar::io_error>(!problem, temporary_.string(),
                              " cannot be made shorter: ", problem.message());
}

void latent_file::require_good() const {
    require<latpar::io_error>(file_.good(), path_.string(),
                              " cannot be written; is the disk full, or the path wrong?");
}

}  // namespace generate
