// SPDX-License-Identifier: Apache-2.0
// A communicator that cannot be split is none.
// refused: communicator
// refused: split
#include <latpar/comm/communicator.hpp>

using namespace latpar;

struct done {
    bool test() { return true; }
    void wait() {}
    bool wait_until(deadline) { return true; }
};

struct alone {
    int rank() const { return 0; }
    int size() const { return 1; }
    bool reaches(memory_space) const { return true; }
    done start_exchange(std::span<const send_op>, std::span<const recv_op>, stream_ref) {
        return {};
    }
#if defined(LATPAR_ACCEPTED)
    std::optional<alone> split(int, int) {
        return alone{};
    }
#endif
    alone duplicate() {
        return {};
    }
    std::vector<std::string> control_all_gather(std::string_view text) {
        return {std::string(text)};
    }
    void abort(std::string_view) {}
};

void talk() {
    alone comm;
    exchange(comm, {}, {});
}
