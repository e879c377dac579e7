// SPDX-License-Identifier: Apache-2.0
// The outputs of a long video, written while it comes.
#include <generate/video_outputs.hpp>

namespace generate {

using latpar::index_t;

video_outputs::video_outputs(const job& j, index_t first, index_t latents) : job_(&j) {
    auto extents = j.extents;
    extents[2] = latents;
    for (const auto& path : j.options.outputs) {
        if (path.extension() == ".safetensors") {
            latents_.push_back(std::make_unique<latent_file>(
                path, extents,
                std::map<std::string, std::string>{{"prompt", j.options.prompt},
                                                   {"seed", std::to_string(j.options.seed)},
                                                   {"first_latent", std::to_string(first)}}));
        } else if (path.extension() == ".gif") {
            gifs_.emplace_back(path, j.options.frames_per_second);
        } else if (!sheet_ && latents > 0) {
            sheet_.emplace(latents, frames_of_sheet);
        }
    }
}

void video_outputs::add(latpar::const_latent_view latents) {
    for (const auto& file : latents_) file->add(latents);
    if (!gifs_.empty() || sheet_) {
        const media::rgb_video frames = job_->decoder->decode(latents);
        for (media::gif_writer& gif : gifs_) gif.add(frames);
        if (sheet_) sheet_->add(frames);
    }
    added_ += latents.extents[2];
}

std::vector<std::string> video_outputs::close(const media::rgb_video& serial) {
    if (added_ == 0) return {};
    for (const auto& file : latents_) file->close();
    for (media::gif_writer& gif : gifs_) gif.close();
    std::vector<std::string> out;
    for (const auto& path : job_->options.outputs) {
        if (path.extension() == ".png") {
            std::vector<media::rgb_video> rows{sheet_->picked()};
            if (serial.frames > 0) rows.insert(rows.begin(), serial);
            media::write_contact_sheet(path, rows, rows.back().frames);
        }
        out.push_back(path.string());
    }
    return out;
}

}  // namespace generate
