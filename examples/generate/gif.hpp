// SPDX-License-Identifier: Apache-2.0
// Animated GIFs that grow as their frames come.
#pragma once

#include <generate/media.hpp>

#include <memory>

namespace media {

/// Writes an endlessly looping GIF, clip by clip.
///
/// The palette of the first clip serves the others, so that nothing flickers, until one comes that
/// it fits much worse; from there on that one's serves. Where 255 colours do not do, the rest is
/// hidden by ordered dithering. Pixels that stay as they are cost nothing.
///
/// The file is begun with the first clip, and holds after each call all frames so far.
/// Memory: in proportion to one clip, whatever the length of all.
/// Errors: usage_error for an empty clip, one of another size than the first, a side over 65535 or
/// fps outside (0, 50]; io_error if the file cannot be written.
class gif_writer {
public:
    gif_writer(std::filesystem::path path, double fps);
    gif_writer(gif_writer&&) noexcept;
    ~gif_writer();

    void add(const rgb_video& clip);
    /// Ends the file, if there is any clip.
    void close();

private:
    class file;

    std::filesystem::path path_;
    double fps_;
    std::unique_ptr<file> file_;
};

}  // namespace media
