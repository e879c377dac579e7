// SPDX-License-Identifier: Apache-2.0
// Communicators and requests that outlive MPI; ends with the number of failures.
#include <latpar/mpi/communicator.hpp>
#include <latpar/mpi/environment.hpp>

#include <cstdio>
#include <cstring>

using namespace latpar;

namespace {

int failures = 0;

template <class Error, class F>
void expect(const char* what, const char* part, F f) {
    try {
        f();
        std::fprintf(stderr, "%s: nothing was thrown\n", what);
    } catch (const Error& error) {
        if (std::strstr(error.what(), part)) return;
        std::fprintf(stderr, "%s: %s\n", what, error.what());
    }
    ++failures;
}

}  // namespace

int main() {
    expect<usage_error>("before", "mpi::environment",
                        [] { static_cast<void>(mpi::communicator::world()); });
    std::optional<mpi::environment> mpi(std::in_place);
    auto comm = mpi::communicator::world();
    auto part = comm.split(0, 0);
    auto done = comm.start_exchange({}, {}, {});
    done.wait();
    mpi.reset();
    expect<comm_error>("exchange", "finalised", [&] { comm.start_exchange({}, {}, {}).wait(); });
    expect<comm_error>("gather", "finalised",
                       [&] { static_cast<void>(part->control_all_gather("x")); });
    expect<comm_error>("split", "finalised", [&] { static_cast<void>(part->split(0, 0)); });
    expect<comm_error>("world", "finalised", [] { static_cast<void>(mpi::communicator::world()); });
    expect<usage_error>("environment", "again", [] { const mpi::environment second; });
    comm.abort("too late");
    done.wait();
    return failures;
}
