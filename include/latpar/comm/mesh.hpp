// SPDX-License-Identifier: Apache-2.0
// Ranks arranged along named axes, with a communicator for each.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/comm/detail/mesh_agreement.hpp>
#include <latpar/comm/mesh_shape.hpp>

#include <concepts>
#include <span>
#include <utility>
#include <vector>

namespace latpar::inline v0 {

/// This rank's communicators along the axes of a mesh.
///
/// Hands each policy the ranks that it spans: `mesh m(world, {{"step", 2}, {"latent", 2}})` gives
/// para_step `m.axis("step")` and latent_parallel `m.axis("latent")`. Each named axis has a channel
/// of its own; the axes that were not named share one of this rank alone.
template <communicator C>
class mesh {
public:
    /// Splits `world`, whose rank r takes the r-th place of the shape.
    ///
    /// Ranks: All of `world`, with one shape. Errors: usage_error, the same on every rank, if the
    /// shapes differ or do not have as many ranks as `world`.
    mesh(C& world, mesh_shape shape) : shape_(std::move(shape)), rank_(world.rank()) {
        latpar::agree_on(world, "the mesh", shape_);
        shape_.require_size(world.size());
        for (const mesh_axis& axis : shape_.axes()) {
            const int first = shape_.ranks_along(rank_, axis.name).front();
            parts_.push_back(std::move(*world.split(first, rank_)));
        }
        parts_.push_back(std::move(*world.split(rank_, 0)));
    }

    /// Wraps every axis of another mesh: `mesh<metered<D>>(std::move(m))` keeps a ledger an axis.
    template <communicator D>
    requires std::constructible_from<C, D>
    explicit mesh(mesh<D> other) : shape_(std::move(other.shape_)), rank_(other.rank_) {
        for (D& part : other.parts_) parts_.emplace_back(std::move(part));
    }

    [[nodiscard]] const mesh_shape& shape() const noexcept { return shape_; }
    /// This rank among all of the mesh.
    [[nodiscard]] int rank() const noexcept { return rank_; }

    /// Checks that every rank of the mesh passes the same value (as streamed).
    ///
    /// Ranks: All; blocks the host. Errors: usage_error with one text on every rank.
    template <class T>
    void agree_on(std::string_view what, const T& value) {
        std::vector<C*> axes;
        for (std::size_t i = 0; i < shape_.axes().size(); ++i) axes.push_back(&parts_[i]);
        detail::agree_on_mesh(std::span<C* const>(axes), what, value);
    }

    /// The communicator along an axis: of this rank alone if the axis was not named.
    ///
    /// Errors: usage_error for an unknown name.
    [[nodiscard]] C& axis(std::string_view name) {
        for (std::size_t i = 0; i < shape_.axes().size(); ++i) {
            if (shape_.axes()[i].name == name) return parts_[i];
        }
        static_cast<void>(shape_.degree(name));
        return parts_.back();
    }
    /// This rank's place along an axis.
    [[nodiscard]] int coordinate(std::string_view name) const {
        return shape_.coordinate(rank_, name);
    }
    [[nodiscard]] int degree(std::string_view name) const { return shape_.degree(name); }

private:
    template <communicator>
    friend class mesh;

    mesh_shape shape_;
    int rank_ = 0;
    std::vector<C> parts_;
};

template <class C>
[[nodiscard]] std::string to_string(const mesh<C>& m) {
    return to_string(m.shape());
}

}  // namespace latpar::inline v0
