// SPDX-License-Identifier: Apache-2.0
// The outputs of a long video, written while it comes.
#pragma once

#include <generate/gif.hpp>
#include <generate/job.hpp>
#include <generate/latent_file.hpp>

#include <optional>
#include <string>
#include <vector>

namespace generate {

/// Decodes latents as they come, and writes all outputs in one pass.
///
/// A .gif grows with every block; a contact sheet has some frames, evenly spaced over what is to
/// come; a .safetensors has its name once it is whole.
/// Memory: of one block, and of the frames of the contact sheet.
class video_outputs {
public:
    /// For `latents` of them from number `first` on; 0: no end, then only for .gif.
    video_outputs(const job& j, latpar::index_t first, latpar::index_t latents);

    /// The next latents, [1, C, n, H, W] in host memory.
    void add(latpar::const_latent_view latents);
    /// Completes the files and says which there are. `serial`, unless empty, is the first row of a
    /// contact sheet.
    [[nodiscard]] std::vector<std::string> close(const media::rgb_video& serial = {});

private:
    const job* job_;
    std::vector<media::gif_writer> gifs_;
    std::vector<std::unique_ptr<latent_file>> latents_;
    std::optional<media::frame_picker> sheet_;
    latpar::index_t added_ = 0;
};

/// The frames of a clip that a contact sheet shows.
inline constexpr latpar::index_t frames_of_sheet = 8;

}  // namespace generate
