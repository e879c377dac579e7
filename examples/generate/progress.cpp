// SPDX-License-Identifier: Apache-2.0
// A progress bar on a terminal, a few plain lines elsewhere.
#include <generate/progress.hpp>
#include <unistd.h>

#include <iomanip>
#include <iostream>
#include <sstream>
#include <utility>

namespace generate {

progress::progress(std::string label, latpar::index_t steps, bool silent, std::string unit)
    : label_(std::move(label)),
      steps_(steps),
      silent_(silent),
      unit_(std::move(unit)),
      terminal_(isatty(STDERR_FILENO) == 1) {}

void progress::update(latpar::index_t done) {
    if (silent_) return;
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    if (steps_ == 0) {
        std::ostringstream line;
        line << std::fixed << std::setprecision(1) << (terminal_ ? "\r" : "") << label_ << ": "
             << done << ' ' << unit_ << "s, " << seconds << " s, " << std::setprecision(2)
             << seconds / static_cast<double>(done) << " s each" << (terminal_ ? "  " : "\n");
        std::cerr << line.str() << std::flush;
        return;
    }
    const double left = seconds / static_cast<double>(done) * static_cast<double>(steps_ - done);
    std::ostringstream line;
    line << std::fixed << std::setprecision(1);
    if (terminal_) {
        constexpr latpar::index_t width = 32;
        const auto filled = static_cast<std::size_t>(done * width / steps_);
        line << '\r' << label_ << " [" << std::string(filled, '#')
             << std::string(static_cast<std::size_t>(width) - filled, '.') << "] " << done << '/'
             << steps_ << "  " << seconds << " s, " << left << " s left  ";
        if (done == steps_) line << '\n';
    } else {
        const latpar::index_t tenths = done * 10 / steps_;
        if (tenths == told_tenths_) return;
        told_tenths_ = tenths;
        line << label_ << ": " << unit_ << ' ' << done << " of " << steps_ << ", " << seconds
             << " s, about " << left << " s left\n";
    }
    std::cerr << line.str() << std::flush;
}

}  // namespace generate
