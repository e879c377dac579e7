// SPDX-License-Identifier: Apache-2.0
// The exceptions that latpar throws.
#pragma once

#include <initializer_list>
#include <ostream>
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

/// A value of any type that is to be streamed: what concerns the type is one small function, so that
/// the many texts of this library cost their callers next to nothing to compile.
struct streamed {
    const void* value;
    void (*put)(std::ostream&, const void* value);
};
template <class T>
[[nodiscard]] streamed as_streamed(const T& value) {
    return {&value, [](std::ostream& out, const void* at) { out << *static_cast<const T*>(at); }};
}
/// For text, so that the lengths of literals are no types of their own.
[[nodiscard]] streamed as_streamed(const char* text);

/// All of them in one string.
[[nodiscard]] std::string join(std::initializer_list<streamed> parts);

/// Everything in `parts`, streamed into one string.
template <class... Parts>
[[nodiscard]] std::string concat(const Parts&... parts) {
    return join({as_streamed(parts)...});
}

/// Throws `Error` with them as its message; apart, so that what calls `require` stays small.
template <class Error>
[[noreturn]] void fail(std::initializer_list<streamed> parts) {
    throw Error(join(parts));
}

/// Throws `Error` with the streamed `parts` as its message unless `condition` holds.
template <class Error = usage_error, class... Parts>
void require(bool condition, const Parts&... parts) {
    if (!condition) fail<Error>({as_streamed(parts)...});
}

}  // namespace detail
}  // namespace latpar::inline v0
