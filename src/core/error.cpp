// SPDX-License-Identifier: Apache-2.0
// The texts of exceptions.
#include <latpar/core/error.hpp>

#include <locale>
#include <sstream>
#include <utility>

namespace latpar::inline v0::detail {

streamed as_streamed(const char* text) {
    return {text, [](std::ostream& out, const void* at) { out << static_cast<const char*>(at); }};
}

std::string join(std::initializer_list<streamed> parts) {
    std::ostringstream out;
    // Whatever locale the program chose: these texts are also compared and parsed.
    out.imbue(std::locale::classic());
    for (const streamed& part : parts) part.put(out, part.value);
    return std::move(out).str();
}

}  // namespace latpar::inline v0::detail
