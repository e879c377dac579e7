// SPDX-License-Identifier: Apache-2.0
// A latent that is written as its frames come.
#pragma once

#include <latpar/core/view.hpp>

#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace generate {

/// Writes a .safetensors with one tensor "latent" [1, C, T, H, W] of float32, frames after frames.
///
/// The file lies under a temporary name beside `path` until `close`; if fewer than T frames came
/// by then, the tensor has that many. Nothing is left of a file that is not closed.
/// Memory: one frame of one channel.
/// Errors: io_error if it cannot be written.
class latent_file {
public:
    latent_file(std::filesystem::path path, const std::array<latpar::index_t, 5>& extents,
                std::map<std::string, std::string> metadata);
    latent_file(const latent_file&) = delete;
    latent_file& operator=(const latent_file&) = delete;
    ~latent_file();

    /// The next frames, [1, C, n, H, W]; host memory of float32, any strides.
    void add(latpar::const_latent_view frames);
    /// Gives the file its name, if any frames came.
    void close();

private:
    [[nodiscard]] std::string header() const;
    /// Where a channel's frame lies in the file.
    [[nodiscard]] std::streamoff position_of(latpar::index_t channel, latpar::index_t frame) const;
    void begin();
    void move_channels_together();
    void require_good() const;

    std::filesystem::path path_;
    std::filesystem::path temporary_;
    std::array<latpar::index_t, 5> extents_;
    std::map<std::string, std::string> metadata_;
    std::fstream file_;
    std::size_t header_bytes_ = 0;
    std::vector<float> frame_;
    latpar::index_t frames_ = 0;
};

}  // namespace generate
