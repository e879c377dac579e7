// SPDX-License-Identifier: Apache-2.0
// The shape of a mesh: named axes with degrees, and who sits where.
#pragma once

#include <array>
#include <initializer_list>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace latpar::inline v0 {

/// The axes that a mesh can have, from far to near.
///
/// The later an axis, the more its ranks talk and the nearer to each other they are: those of
/// `ulysses` are consecutive.
inline constexpr std::array<std::string_view, 6> mesh_axes{"stage",  "step", "guidance",
                                                           "latent", "ring", "ulysses"};

/// An axis and how many ranks it has.
struct mesh_axis {
    std::string name;
    int degree = 1;

    friend bool operator==(const mesh_axis&, const mesh_axis&) = default;
};

/// Named axes with degrees, in their canonical order whatever order they were given in.
///
/// A value, free of communicators. The nearest axis varies fastest with the rank.
/// Errors of all makers: usage_error for an unknown or repeated name, or a degree below 1.
class mesh_shape {
public:
    mesh_shape() = default;
    mesh_shape(std::initializer_list<mesh_axis> axes) : mesh_shape(std::vector<mesh_axis>(axes)) {}
    explicit mesh_shape(std::vector<mesh_axis> axes);

    /// From "latent=2,ulysses=2"; an empty text has no axes. Errors: also for malformed text.
    [[nodiscard]] static mesh_shape parse(std::string_view text);

    /// The axes that were named, from far to near.
    [[nodiscard]] const std::vector<mesh_axis>& axes() const noexcept { return axes_; }
    /// The number of ranks.
    [[nodiscard]] int size() const noexcept;
    /// The ranks along an axis; 1 if it was not named. Errors: usage_error for an unknown name.
    [[nodiscard]] int degree(std::string_view axis) const;
    /// Where a rank sits along an axis. Errors: usage_error for a bad name or rank.
    [[nodiscard]] int coordinate(int rank, std::string_view axis) const;
    /// The ranks that differ from `rank` in this coordinate alone, itself included, in order.
    [[nodiscard]] std::vector<int> ranks_along(int rank, std::string_view axis) const;

    /// Errors: usage_error unless size() is `ranks`; it names the divisors and a mesh that fits.
    void require_size(int ranks) const;

    friend bool operator==(const mesh_shape&, const mesh_shape&) = default;

private:
    /// How many ranks apart two neighbours along an axis are.
    [[nodiscard]] int stride(std::string_view axis) const;

    std::vector<mesh_axis> axes_;
};

/// As parse() reads it; "serial" without axes.
[[nodiscard]] std::string to_string(const mesh_shape& shape);
std::ostream& operator<<(std::ostream& out, const mesh_shape& shape);

}  // namespace latpar::inline v0
