// SPDX-License-Identifier: Apache-2.0
// The lifetime of MPI in this process.
#pragma once

#include <latpar/core/error.hpp>

namespace latpar::inline v0::mpi {

/// Who may call MPI: the thread that initialised it, any one at a time, or several at once.
enum class thread_level { funneled, serialized, multiple };

/// Initialises MPI, and finalises it at the end of its scope.
///
/// The only thing in the library that does. If MPI is initialised already, it adopts that and
/// leaves finalising to whoever did it. Communicators may outlive it: their destruction is then
/// harmless, their use a comm_error. One thread a process needs `funneled`; communicators in
/// several threads at once need `multiple`.
class environment {
public:
    /// Ranks: All of the job. Errors: usage_error if MPI gives less than `level`, or was
    /// finalised before.
    explicit environment(thread_level level = thread_level::funneled);
    environment(const environment&) = delete;
    environment& operator=(const environment&) = delete;
    ~environment();

    /// What MPI gave, which may be more than was asked for.
    [[nodiscard]] thread_level level() const noexcept { return level_; }

private:
    thread_level level_ = thread_level::funneled;
    bool owns_ = false;
};

}  // namespace latpar::inline v0::mpi
