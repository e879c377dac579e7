// SPDX-License-Identifier: Apache-2.0
// A request without a deadline is none: a lost peer would hang its user for good.
// refused: exchange_request
// refused: wait_until
#include <latpar/comm/communicator.hpp>

using namespace latpar;

struct patient {
    bool test() { return true; }
    void wait() {}
#if defined(LATPAR_ACCEPTED)
    bool wait_until(deadline) {
        return true;
    }
#endif
};

template <exchange_request Request>
void finish(Request request) {
    request.wait();
}

void talk() {
    finish(patient{});
}
