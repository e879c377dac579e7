// SPDX-License-Identifier: Apache-2.0
// Tests of examples/generate/media.hpp: what is written is decoded again and compared.
#include <generate/gif.hpp>
#include <generate/media.hpp>
#include <gif_lib.h>
#include <png.h>
#include <support/catch.hpp>
#include <support/temporary.hpp>

#include <cmath>
#include <cstring>
#include <memory>

using latpar::index_t;
using media::rgb_video;

namespace {

rgb_video empty_video(index_t frames, index_t height, index_t width) {
    rgb_video out{frames, height, width, {}};
    out.data.resize(static_cast<std::size_t>(frames * height * width * 3));
    return out;
}

template <class Color>
rgb_video paint(index_t frames, index_t height, index_t width, Color color) {
    rgb_video out = empty_video(frames, height, width);
    std::size_t i = 0;
    for (index_t t = 0; t < frames; ++t) {
        for (index_t y = 0; y < height; ++y) {
            for (index_t x = 0; x < width; ++x) {
                for (int c = 0; c < 3; ++c) out.data[i++] = color(t, y, x, c);
            }
        }
    }
    return out;
}

/// A dark gradient that drifts, and a bright disc that moves.
rgb_video smooth_clip() {
    return paint(8, 48, 64, [](index_t t, index_t y, index_t x, int c) {
        const auto dx = double(x - 8 - 6 * t);
        const auto dy = double(y - 20);
        if (dx * dx + dy * dy < 100) return std::uint8_t(c == 0 ? 228 - 2 * dx : 60 + dy);
        return std::uint8_t(20 + x + (c == 2 ? y : 0) + t);
    });
}

struct decoded_gif {
    rgb_video video;
    std::vector<int> delays;
    bool loops = false;
    int palettes = 0;
};

decoded_gif read_gif(const std::filesystem::path& path) {
    int code = 0;
    const std::unique_ptr<GifFileType, void (*)(GifFileType*)> file(
        DGifOpenFileName(path.c_str(), &code), [](GifFileType* open) {
            if (open) DGifCloseFile(open, nullptr);
        });
    REQUIRE(file);
    REQUIRE(DGifSlurp(file.get()) == GIF_OK);
    decoded_gif out;
    out.video = empty_video(file->ImageCount, file->SHeight, file->SWidth);
    out.palettes = file->SColorMap ? 1 : 0;
    std::vector<std::uint8_t> canvas(out.video.data.size() / std::size_t(file->ImageCount));
    for (int i = 0; i < file->ImageCount; ++i) {
        const SavedImage& image = file->SavedImages[i];
        if (image.ImageDesc.ColorMap) ++out.palettes;
        GraphicsControlBlock control{};
        REQUIRE(DGifSavedExtensionToGCB(file.get(), i, &control) == GIF_OK);
        out.delays.push_back(control.DelayTime);
        for (int e = 0; e < image.ExtensionBlockCount; ++e) {
            const ExtensionBlock& block = image.ExtensionBlocks[e];
            out.loops |= block.ByteCount == 11 && !std::memcmp(block.Bytes, "NETSCAPE2.0", 11);
        }
        for (std::size_t p = 0; p < canvas.size() / 3; ++p) {
            const int index = image.RasterBits[p];
            if (index == control.TransparentColor) continue;
            const ColorMapObject& map =
                image.ImageDesc.ColorMap ? *image.ImageDesc.ColorMap : *file->SColorMap;
            REQUIRE(index < map.ColorCount);
            const GifColorType& color = map.Colors[index];
            canvas[3 * p] = color.Red;
            canvas[3 * p + 1] = color.Green;
            canvas[3 * p + 2] = color.Blue;
        }
        std::memcpy(out.video.data.data() + std::size_t(i) * canvas.size(), canvas.data(),
                    canvas.size());
    }
    return out;
}

rgb_video read_png(const std::filesystem::path& path) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    REQUIRE(png_image_begin_read_from_file(&image, path.c_str()) != 0);
    image.format = PNG_FORMAT_RGB;
    rgb_video out = empty_video(1, image.height, image.width);
    REQUIRE(png_image_finish_read(&image, nullptr, out.data.data(), 0, nullptr) != 0);
    return out;
}

double psnr(const rgb_video& a, const rgb_video& b) {
    REQUIRE(a.data.size() == b.data.size());
    double squared = 0;
    for (std::size_t i = 0; i < a.data.size(); ++i) {
        squared += std::pow(double(a.data[i]) - double(b.data[i]), 2);
    }
    return 10 * std::log10(255.0 * 255.0 * double(a.data.size()) / squared);
}

}  // namespace

TEST_CASE("a GIF of a smooth clip decodes to nearly the same, frame by frame") {
    const temporary_directory folder;
    const auto path = folder / "clip.gif";
    const rgb_video clip = smooth_clip();
    media::write_gif(path, clip, 8);
    const decoded_gif gif = read_gif(path);
    CHECK(gif.video.frames == 8);
    CHECK(gif.video.height == 48);
    CHECK(gif.video.width == 64);
    CHECK(gif.loops);
    CHECK(gif.palettes == 1);
    CHECK(psnr(gif.video, clip) > 34);
    // 12.5 hundredths a frame, rounded without drifting.
    CHECK(gif.delays == std::vector<int>{13, 12, 13, 12, 13, 12, 13, 12});
    CHECK(std::filesystem::file_size(path) < clip.data.size() / 3);
}

TEST_CASE("a GIF of few colours is exact, and still frames cost next to nothing") {
    const temporary_directory folder;
    const auto path = folder / "few.gif";
    const rgb_video clip = paint(20, 40, 40, [](index_t, index_t y, index_t x, int c) {
        return std::uint8_t((x * 7 + y * 3) % 16 * 8 + c * 40);
    });
    media::write_gif(path, clip, 25);
    CHECK(read_gif(path).video.data == clip.data);
    const rgb_video still{1, 40, 40, {clip.frame(0).begin(), clip.frame(0).end()}};
    media::write_gif(folder / "still.gif", still, 25);
    CHECK(read_gif(folder / "still.gif").video.data == still.data);
    CHECK(std::filesystem::file_size(path) <
          std::filesystem::file_size(folder / "still.gif") + 19 * 120);
}

TEST_CASE("a GIF that comes in parts is that of the whole clip while its palette serves") {
    const temporary_directory folder;
    const rgb_video clip = paint(9, 16, 16, [](index_t t, index_t y, index_t x, int c) {
        return std::uint8_t((x + y + t) % 8 * 16 + c * 20);
    });
    media::write_gif(folder / "whole.gif", clip, 8);
    media::gif_writer parts(folder / "parts.gif", 8);
    CHECK_FALSE(std::filesystem::exists(folder / "parts.gif"));
    for (const auto& [first, count] : {std::pair(0, 4), std::pair(4, 1), std::pair(5, 4)}) {
        const auto begin = clip.data.begin() + first * 16 * 16 * 3;
        parts.add({count, 16, 16, {begin, begin + count * 16 * 16 * 3}});
    }
    parts.close();
    const decoded_gif gif = read_gif(folder / "parts.gif");
    CHECK(gif.video.data == clip.data);
    CHECK(gif.palettes == 1);
    CHECK(gif.delays == read_gif(folder / "whole.gif").delays);
    CHECK(std::filesystem::file_size(folder / "parts.gif") ==
          std::filesystem::file_size(folder / "whole.gif"));
}

TEST_CASE("a GIF takes a palette anew where its first no longer serves") {
    const temporary_directory folder;
    const auto colors_of = [](int channel) {
        return paint(3, 16, 16, [=](index_t t, index_t y, index_t x, int c) {
            return std::uint8_t(c == channel ? 8 * (x + y + t) : 0);
        });
    };
    media::gif_writer parts(folder / "parts.gif", 8);
    rgb_video clip = empty_video(0, 16, 16);
    for (const int channel : {0, 0, 2, 2}) {
        const rgb_video part = colors_of(channel);
        parts.add(part);
        clip.frames += part.frames;
        clip.data.insert(clip.data.end(), part.data.begin(), part.data.end());
    }
    parts.close();
    const decoded_gif gif = read_gif(folder / "parts.gif");
    CHECK(gif.video.data == clip.data);
    CHECK(gif.palettes == 1 + 6);  // that of the file, and of each later frame

    media::gif_writer wrong(folder / "wrong.gif", 8);
    wrong.add(colors_of(0));
    CHECK_THROWS_WITH(wrong.add(empty_video(1, 4, 4)), ContainsSubstring("not 16x16 and 4x4"));
    CHECK_THROWS_AS(media::gif_writer(folder / "fast.gif", 60), latpar::usage_error);
}

TEST_CASE("frames are picked from a clip in parts as from the whole") {
    const temporary_directory folder;
    const rgb_video clip = smooth_clip();
    media::write_contact_sheet(folder / "whole.png", {&clip, 1}, 3);
    media::frame_picker picker(8, 3);
    for (const auto& [first, count] : {std::pair(0, 3), std::pair(3, 4), std::pair(7, 1)}) {
        const auto begin = clip.data.begin() + first * 48 * 64 * 3;
        picker.add({count, 48, 64, {begin, begin + count * 48 * 64 * 3}});
    }
    CHECK(picker.picked().frames == 3);
    media::write_contact_sheet(folder / "parts.png", {&picker.picked(), 1}, 3);
    CHECK(read_png(folder / "parts.png").data == read_png(folder / "whole.png").data);
    // Fewer frames than were wanted, and fewer than were announced.
    media::frame_picker all(8, 100);
    all.add(clip);
    CHECK(all.picked().data == clip.data);
    media::frame_picker half(16, 4);
    half.add(clip);
    CHECK(half.picked().frames == 2);  // numbers 0 and 5
    CHECK_THROWS_AS(media::frame_picker(8, 0), latpar::usage_error);
}

TEST_CASE("dithering keeps a gradient's mean where the palette is too small for it") {
    const temporary_directory folder;
    const rgb_video clip = paint(1, 128, 128, [](index_t, index_t y, index_t x, int c) {
        return std::uint8_t(c == 0 ? 2 * x : c == 1 ? 2 * y : 255 - x - y);
    });
    media::write_gif(folder / "gradient.gif", clip, 1);
    const rgb_video found = read_gif(folder / "gradient.gif").video;
    CHECK(psnr(found, clip) > 30);
    for (index_t top = 0; top < 128; top += 32) {
        for (index_t left = 0; left < 128; left += 32) {
            for (index_t c = 0; c < 3; ++c) {
                double difference = 0;
                for (index_t y = top; y < top + 32; ++y) {
                    for (index_t x = left; x < left + 32; ++x) {
                        const auto at = std::size_t((y * 128 + x) * 3 + c);
                        difference += double(found.data[at]) - double(clip.data[at]);
                    }
                }
                CHECK(std::abs(difference / 1024) < 3);
            }
        }
    }
}

TEST_CASE("a contact sheet is exact, with a gap between its cells") {
    const temporary_directory folder;
    const auto path = folder / "sheet.png";
    const rgb_video clip = smooth_clip();
    const rgb_video shorter{2, 48, 64, {clip.data.begin(), clip.data.begin() + 2 * 48 * 64 * 3}};
    const std::vector rows{clip, shorter};
    media::write_contact_sheet(path, rows, 3);
    const rgb_video sheet = read_png(path);
    REQUIRE(sheet.height == 2 * 48 + 2);
    REQUIRE(sheet.width == 3 * 64 + 2 * 2);

    // First, middle and last frame of the long clip; both of the short one, then nothing.
    rgb_video wanted = empty_video(1, sheet.height, sheet.width);
    std::ranges::fill(wanted.data, std::uint8_t{255});
    const auto place = [&](const rgb_video& video, index_t frame, index_t row, index_t column) {
        for (index_t y = 0; y < 48; ++y) {
            std::memcpy(&wanted.data[std::size_t(((row * 50 + y) * sheet.width + column * 66) * 3)],
                        video.frame(frame).data() + y * 64 * 3, 64 * 3);
        }
    };
    place(clip, 0, 0, 0);
    place(clip, 3, 0, 1);
    place(clip, 7, 0, 2);
    place(shorter, 0, 1, 0);
    place(shorter, 1, 1, 1);
    CHECK(sheet.data == wanted.data);
}

TEST_CASE("a single frame in a row is the first") {
    const temporary_directory folder;
    const rgb_video clip = smooth_clip();
    media::write_contact_sheet(folder / "one.png", {&clip, 1}, 1);
    const auto first = clip.frame(0);
    CHECK(read_png(folder / "one.png").data == std::vector(first.begin(), first.end()));
}

TEST_CASE("what cannot be written is refused with the reason") {
    const temporary_directory folder;
    const rgb_video clip = smooth_clip();
    const std::vector<rgb_video> rows{clip};
    CHECK_THROWS_AS(media::write_gif(folder / "none" / "x.gif", clip, 8), latpar::io_error);
    CHECK_THROWS_WITH(media::write_gif(folder / "none" / "x.gif", clip, 8),
                      ContainsSubstring("x.gif") && ContainsSubstring("cannot be written"));
    CHECK_THROWS_AS(media::write_contact_sheet(folder / "none" / "x.png", rows, 1),
                    latpar::io_error);
    CHECK_THROWS_WITH(media::write_contact_sheet(folder / "none" / "x.png", rows, 1),
                      ContainsSubstring("x.png") && ContainsSubstring("cannot be written"));

    const auto path = folder / "x.gif";
    CHECK_THROWS_AS(media::write_gif(path, clip, 0), latpar::usage_error);
    CHECK_THROWS_WITH(media::write_gif(path, clip, 60), ContainsSubstring("not at 60"));
    CHECK_THROWS_WITH(media::write_gif(path, empty_video(0, 4, 4), 8),
                      "a clip of 0 frames of 4x4 pixels is empty");
    rgb_video torn = clip;
    torn.data.pop_back();
    CHECK_THROWS_WITH(media::write_gif(path, torn, 8),
                      ContainsSubstring("takes 73728 bytes, not 73727"));
    CHECK_THROWS_WITH(media::write_gif(path, empty_video(1, 1, 65536), 8),
                      ContainsSubstring("not 1x65536"));
    CHECK_THROWS_AS(media::write_contact_sheet(path, {}, 1), latpar::usage_error);
    CHECK_THROWS_WITH(media::write_contact_sheet(path, rows, 0),
                      ContainsSubstring("0 frames in a row"));
    const std::vector<rgb_video> uneven{clip, empty_video(1, 4, 4)};
    CHECK_THROWS_WITH(media::write_contact_sheet(path, uneven, 1),
                      ContainsSubstring("not 48x64 and 4x4"));
    CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("a full disk is reported") {
    if (!std::filesystem::is_character_file("/dev/full")) return;
    const rgb_video clip = smooth_clip();
    CHECK_THROWS_AS(media::write_gif("/dev/full", clip, 8), latpar::io_error);
    CHECK_THROWS_AS(media::write_contact_sheet("/dev/full", {&clip, 1}, 8), latpar::io_error);
    CHECK(std::filesystem::is_character_file("/dev/full"));
}
