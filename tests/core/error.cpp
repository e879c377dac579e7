// SPDX-License-Identifier: Apache-2.0
// Tests of core/error.hpp: the hierarchy and the messages.
#include <latpar/core/error.hpp>

#include <support/catch.hpp>

#include <locale>
#include <string>
#include <string_view>
#include <type_traits>

using namespace latpar;

namespace {

template <class Error>
constexpr bool is_a_latpar_error =
    std::is_base_of_v<error, Error>&& std::is_base_of_v<std::runtime_error, Error> &&
    !std::is_same_v<error, Error>;

static_assert(is_a_latpar_error<usage_error> && is_a_latpar_error<comm_error> &&
              is_a_latpar_error<device_error> && is_a_latpar_error<io_error>);
static_assert(!std::is_base_of_v<usage_error, comm_error>);

}  // namespace

TEST_CASE("concat streams its parts in order") {
    CHECK(detail::concat("rank ", 3, " of ", 4L, ", r = ", 0.5, '!') == "rank 3 of 4, r = 0.5!");
    const char* const pointed_to = "pointed to";
    char changeable[] = "changeable";
    CHECK(detail::concat(pointed_to, '/', changeable, '/', std::string("owned"), '/',
                         std::string_view("seen, not ended", 4)) ==
          "pointed to/changeable/owned/seen");
    CHECK(detail::concat().empty());
}

TEST_CASE("texts do not depend on the locale that a program chose") {
    struct grouping : std::numpunct<char> {
        [[nodiscard]] std::string do_grouping() const override { return "\3"; }
    };
    const std::locale before =
        std::locale::global(std::locale(std::locale::classic(), new grouping));
    const std::string text = detail::concat(4000, ' ', 0.5);
    std::locale::global(before);
    CHECK(text == "4000 0.5");
}

TEST_CASE("require throws the chosen error with the streamed message, and only if it must") {
    CHECK_NOTHROW(detail::require(true, "not seen"));
    CHECK_THROWS_AS(detail::require(false, "x"), usage_error);
    CHECK_THROWS_AS(detail::require<io_error>(false, "x"), io_error);
    CHECK_THROWS_WITH(detail::require(false, "overlap ", -1, " is negative; use 0 or more"),
                      "overlap -1 is negative; use 0 or more");
}

TEST_CASE("one handler catches every error of the library") {
    const auto message_of = [](auto thrown) {
        try {
            throw thrown;
        } catch (const error& caught) {
            return std::string(caught.what());
        }
    };
    CHECK(message_of(usage_error("u")) == "u");
    CHECK(message_of(comm_error("c")) == "c");
    CHECK(message_of(device_error("d")) == "d");
    CHECK(message_of(io_error("i")) == "i");
}
