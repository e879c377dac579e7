// SPDX-License-Identifier: Apache-2.0
// An exchange between two threads against what two threads' plain memcpy moves.
#include <latpar/comm/thread_team.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <thread>

using namespace latpar;

namespace {

using clock_type = std::chrono::steady_clock;

double median(std::vector<double> values) {
    std::nth_element(values.begin(),
                     values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

struct result {
    double exchange_seconds = 0;
    double memcpy_seconds = 0;
    double ratio = 0;
};

/// Medians of both, measured in turns, so that a machine that changes its speed does so for both;
/// the ratio is the median over the turns.
result measure(std::size_t bytes, int turns) {
    std::vector<double> exchanged;
    std::vector<double> copied;
    std::barrier<> start(2);
    thread_team(2).run([&](thread_communicator& comm) {
        const std::vector<std::uint8_t> out(bytes, static_cast<std::uint8_t>(comm.rank()));
        std::vector<std::uint8_t> in(bytes);
        const int peer = 1 - comm.rank();
        const std::array sends{send_op{out.data(), static_cast<index_t>(bytes), dtype::u8, peer}};
        const std::array recvs{recv_op{in.data(), static_cast<index_t>(bytes), dtype::u8, peer}};
        // From one barrier to the next: both directions, whichever thread is slower.
        const auto timed = [&](std::vector<double>& times, bool keep, auto work) {
            start.arrive_and_wait();
            const auto begin = clock_type::now();
            work();
            start.arrive_and_wait();
            if (keep && comm.rank() == 0) {
                times.push_back(std::chrono::duration<double>(clock_type::now() - begin).count());
            }
        };
        for (int turn = -2; turn < turns; ++turn) {
            timed(exchanged, turn >= 0, [&] { exchange(comm, sends, recvs); });
            timed(copied, turn >= 0, [&] { std::memcpy(in.data(), out.data(), bytes); });
        }
    });
    std::vector<double> ratios;
    for (std::size_t i = 0; i < copied.size(); ++i) ratios.push_back(copied[i] / exchanged[i]);
    return {median(exchanged), median(copied), median(ratios)};
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 2 || (argc == 2 && argv[1][0] == '-')) {
        std::fprintf(stderr, "usage: %s [results.json]\n", argv[0]);
        return 2;
    }
    nlohmann::json rows = nlohmann::json::array();
    std::printf("%10s  %14s  %14s  %6s\n", "bytes", "exchange GB/s", "memcpy GB/s", "ratio");
    for (const std::size_t bytes :
         {std::size_t{1} << 12, std::size_t{1} << 16, std::size_t{1} << 20, std::size_t{8} << 20,
          std::size_t{64} << 20}) {
        const result times = measure(bytes, bytes > (1 << 20) ? 31 : 301);
        const double moved = 2 * static_cast<double>(bytes) * 1e-9;
        std::printf("%10zu  %14.3f  %14.3f  %6.3f\n", bytes, moved / times.exchange_seconds,
                    moved / times.memcpy_seconds, times.ratio);
        rows.push_back({{"bytes", bytes},
                        {"exchange_seconds", times.exchange_seconds},
                        {"memcpy_seconds", times.memcpy_seconds},
                        {"ratio", times.ratio}});
    }
    if (argc == 2) {
        const nlohmann::json report = {{"benchmark", "exchange"},
                                       {"threads", std::thread::hardware_concurrency()},
                                       {"rows", rows}};
        std::ofstream file(argv[1]);
        file << report.dump(2) << '\n';
        if (!file.good()) {
            std::fprintf(stderr, "%s cannot be written\n", argv[1]);
            return 1;
        }
    }
    return 0;
}
