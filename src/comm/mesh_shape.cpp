// SPDX-License-Identifier: Apache-2.0
// Index arithmetic, parsing and refusals of mesh shapes.
#include <latpar/comm/mesh_shape.hpp>
#include <latpar/core/error.hpp>

#include <algorithm>
#include <charconv>
#include <numeric>

namespace latpar::inline v0 {
namespace {

std::size_t position_of(std::string_view name) {
    const auto found = std::find(mesh_axes.begin(), mesh_axes.end(), name);
    if (found == mesh_axes.end()) {
        std::string known;
        for (const std::string_view axis : mesh_axes) known += detail::concat(" ", axis);
        throw usage_error(detail::concat("a mesh has no axis \"", name, "\"; the axes are", known));
    }
    return static_cast<std::size_t>(found - mesh_axes.begin());
}

}  // namespace

mesh_shape::mesh_shape(std::vector<mesh_axis> axes) : axes_(std::move(axes)) {
    long long ranks = 1;
    for (const mesh_axis& axis : axes_) {
        static_cast<void>(position_of(axis.name));
        detail::require(axis.degree >= 1, "mesh axis ", axis.name, " has degree ", axis.degree,
                        "; a degree is 1 or more");
        ranks *= axis.degree;
        detail::require(ranks <= 1 << 30, "mesh axis ", axis.name, " with degree ", axis.degree,
                        " makes the mesh larger than 2^30 ranks");
    }
    std::sort(axes_.begin(), axes_.end(), [](const mesh_axis& a, const mesh_axis& b) {
        return position_of(a.name) < position_of(b.name);
    });
    for (std::size_t i = 1; i < axes_.size(); ++i) {
        detail::require(axes_[i].name != axes_[i - 1].name, "mesh axis ", axes_[i].name,
                        " is named twice, with degrees ", axes_[i - 1].degree, " and ",
                        axes_[i].degree, "; name it once");
    }
}

mesh_shape mesh_shape::parse(std::string_view text) {
    std::vector<mesh_axis> axes;
    std::string_view rest = text;
    while (!rest.empty()) {
        const std::size_t comma = rest.find(',');
        const std::string_view item = rest.substr(0, comma);
        rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
        const std::size_t equals = std::min(item.find('='), item.size());
        const std::string_view number = item.substr(std::min(equals + 1, item.size()));
        int degree = 0;
        const auto [end, status] =
            std::from_chars(number.data(), number.data() + number.size(), degree);
        const bool dangling = comma != std::string_view::npos && rest.empty();
        detail::require(!number.empty() && status == std::errc() &&
                            end == number.data() + number.size() && !dangling,
                        "\"", text, "\" is not a mesh; write it as latent=2,ulysses=2");
        axes.push_back({std::string(item.substr(0, equals)), degree});
    }
    return mesh_shape(std::move(axes));
}

int mesh_shape::size() const noexcept {
    return std::accumulate(axes_.begin(), axes_.end(), 1,
                           [](int ranks, const mesh_axis& axis) { return ranks * axis.degree; });
}

int mesh_shape::degree(std::string_view axis) const {
    static_cast<void>(position_of(axis));
    for (const mesh_axis& own : axes_) {
        if (own.name == axis) return own.degree;
    }
    return 1;
}

int mesh_shape::stride(std::string_view axis) const {
    int out = 1;
    for (const mesh_axis& own : axes_) {
        if (position_of(own.name) > position_of(axis)) out *= own.degree;
    }
    return out;
}

int mesh_shape::coordinate(int rank, std::string_view axis) const {
    detail::require(rank >= 0 && rank < size(), "rank ", rank, " is not in the mesh ", *this,
                    "; its last is ", size() - 1);
    return rank / stride(axis) % degree(axis);
}

std::vector<int> mesh_shape::ranks_along(int rank, std::string_view axis) const {
    const int first = rank - coordinate(rank, axis) * stride(axis);
    std::vector<int> ranks(static_cast<std::size_t>(degree(axis)));
    for (std::size_t i = 0; i < ranks.size(); ++i) {
        ranks[i] = first + static_cast<int>(i) * stride(axis);
    }
    return ranks;
}

void mesh_shape::require_size(int ranks) const {
    if (size() == ranks) return;
    std::string divisors;
    for (int d = 1; d <= ranks; ++d) {
        if (ranks % d == 0) divisors += detail::concat(divisors.empty() ? "" : ", ", d);
    }
    // Near the asked-for degrees: each keeps what it shares with the ranks that are left, and the
    // nearest axis takes the rest.
    mesh_shape fits = axes_.empty() ? mesh_shape{{"latent", 1}} : *this;
    int left = ranks;
    for (mesh_axis& axis : fits.axes_) {
        axis.degree = std::gcd(axis.degree, left);
        left /= axis.degree;
    }
    fits.axes_.back().degree *= left;
    throw usage_error(detail::concat("the mesh ", *this, " has ", size(),
                                     size() == 1 ? " rank" : " ranks", ", but there are ", ranks,
                                     "; use degrees from ", divisors, " whose product is ", ranks,
                                     ", for example ", fits));
}

std::string to_string(const mesh_shape& shape) {
    return detail::concat(shape);
}

std::ostream& operator<<(std::ostream& out, const mesh_shape& shape) {
    if (shape.axes().empty()) return out << "serial";
    const char* separator = "";
    for (const mesh_axis& axis : shape.axes()) {
        out << separator << axis.name << '=' << axis.degree;
        separator = ",";
    }
    return out;
}

}  // namespace latpar::inline v0
