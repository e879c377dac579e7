// SPDX-License-Identifier: Apache-2.0
// MPI_Init_thread and MPI_Finalize.
#include <latpar/mpi/environment.hpp>

#include <mpi/check.hpp>

#include <string_view>

namespace latpar::inline v0::mpi {
namespace {

int mpi_level(thread_level level) {
    switch (level) {
        case thread_level::funneled:
            return MPI_THREAD_FUNNELED;
        case thread_level::serialized:
            return MPI_THREAD_SERIALIZED;
        case thread_level::multiple:
            return MPI_THREAD_MULTIPLE;
    }
    return MPI_THREAD_SINGLE;
}

std::string_view name_of_level(int level) {
    if (level == MPI_THREAD_MULTIPLE) return "MPI_THREAD_MULTIPLE";
    if (level == MPI_THREAD_SERIALIZED) return "MPI_THREAD_SERIALIZED";
    return level == MPI_THREAD_FUNNELED ? "MPI_THREAD_FUNNELED" : "MPI_THREAD_SINGLE";
}

}  // namespace

environment::environment(thread_level level) {
    using latpar::detail::require;
    require(!detail::is_finalized(),
            "MPI was finalised, and cannot be initialised again in one process; keep one "
            "mpi::environment for the whole program");
    int provided = MPI_THREAD_SINGLE;
    if (detail::is_initialized()) {
        detail::check(MPI_Query_thread(&provided), "MPI_Query_thread");
        // Without threads of its own, a process that is single in MPI's eyes is funneled in ours.
        require(level == thread_level::funneled || provided >= mpi_level(level),
                "MPI was initialised with ", name_of_level(provided), ", but ",
                name_of_level(mpi_level(level)), " is needed; ask MPI_Init_thread for it");
    } else {
        detail::check(MPI_Init_thread(nullptr, nullptr, mpi_level(level), &provided),
                      "MPI_Init_thread");
        owns_ = true;
        if (provided < mpi_level(level)) {
            MPI_Finalize();
            throw usage_error(latpar::detail::concat(
                "this MPI offers ", name_of_level(provided), ", but ",
                name_of_level(mpi_level(level)), " is needed; use fewer threads or another MPI"));
        }
    }
    if (provided >= MPI_THREAD_SERIALIZED) level_ = thread_level::serialized;
    if (provided >= MPI_THREAD_MULTIPLE) level_ = thread_level::multiple;
}

environment::~environment() {
    if (owns_ && !detail::is_finalized()) MPI_Finalize();
}

}  // namespace latpar::inline v0::mpi
