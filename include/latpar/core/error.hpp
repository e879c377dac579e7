// SPDX-License-Identifier: Apache-2.0
// The exceptions that latpar throws.
#pragma once

#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>

namespace latpar::inline v0 {

/// Base of every exception of the library.
///
/// A message says what was wrong, the values, and what would be right.
class error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// An argument or option that cannot be served; nothing was sent.
class usage_error : public error {
public:
    using error::error;
};

/// A communicator that failed, was aborted by a peer, or ran past a deadline.
class comm_error : public error {
public:
    using error::error;
};

/// An accelerator or its runtime that failed.
class device_error : public error {
public:
    using error::error;
};

/// A file that cannot be read or written, or whose content is malformed.
class io_error : public error {
public:
    using error::error;
};

namespace detail {

/// Everything in `parts`, streamed into one string.
template <class... Parts>
[[nodiscard]] std::string concat(const Parts&... parts) {
    std::ostringstream out;
    // Whatever locale the program chose: these texts are also compared and parsed.
    out.imbue(std::locale::classic());
    (out << ... << parts);
    return std::move(out).str();
}

/// Throws `Error` with the streamed `parts` as its message unless `condition` holds.
template <class Error = usage_error, class... Parts>
void require(bool condition, const Parts&... parts) {
    if (!condition) throw Error(concat(parts...));
}

}  // namespace detail
}  // namespace latpar::inline v0
