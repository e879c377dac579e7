// SPDX-License-Identifier: Apache-2.0
// Pipelines of stages that make one video side by side.
#pragma once

#include <latpar/comm/agreement.hpp>
#include <latpar/comm/background.hpp>
#include <latpar/comm/detail/mesh_agreement.hpp>
#include <latpar/comm/mesh_shape.hpp>

#include <concepts>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace latpar::inline v0::detail {

/// A mesh, as far as a pipeline needs one.
template <class M>
concept staged_mesh = requires(M& ranks, std::string_view name) {
    { ranks.shape() } -> std::convertible_to<const mesh_shape&>;
    requires communicator<std::remove_reference_t<decltype(ranks.axis(name))>>;
};

/// The communicator of a mesh.
template <staged_mesh M>
using axis_type = std::remove_reference_t<decltype(std::declval<M&>().axis("stage"))>;

/// The channels of a pipeline, as it lists them. Neighbouring links differ: a backend may do the
/// exchanges of one communicator in order, and what a stage sends is not to wait for what it
/// receives next.
enum class pipe : std::size_t { even_links, back, odd_links };

/// One pipeline of stages, with channels for either direction, and its peers: the ranks of the same
/// stage in the pipelines beside it, along every other axis of the mesh.
///
/// Pipelines side by side do the same tasks in the same order; along `guidance` each does some of
/// the branches, along the others the model shares its tokens.
/// Ranks: all of the communicator or the mesh make every call.
template <communicator Comm>
class pipelines {
public:
    /// A pipeline alone.
    explicit pipelines(Comm& stages) : back_(background(stages)) {
        axes_.push_back(background(stages));
        if (stages.size() > 2) odd_links_.emplace(background(stages));
    }

    template <staged_mesh Mesh>
    requires std::same_as<axis_type<Mesh>, Comm>
    explicit pipelines(Mesh& ranks) : back_(background(ranks.axis("stage"))) {
        const mesh_shape& shape = ranks.shape();
        for (const std::string_view name : mesh_axes) {
            if (name != "stage" && shape.degree(name) == 1) continue;
            require(name != "latent" && name != "step", "a mesh of ", shape,
                    " was given to DualParal, whose pipelines go along stage; beside it use "
                    "guidance, ring or ulysses, and leave out ",
                    name);
            if (name == "stage") stage_ = axes_.size();
            if (name == "guidance") guidance_ = static_cast<int>(axes_.size());
            Comm& axis = ranks.axis(name);
            axes_.push_back(name == "stage" ? background(axis) : axis.duplicate());
            if (name == "stage" && axis.size() > 2) odd_links_.emplace(background(axis));
        }
    }

    /// The stages.
    [[nodiscard]] Comm& stages() noexcept { return axes_[stage_]; }
    [[nodiscard]] const Comm& stages() const noexcept { return axes_[stage_]; }
    /// What leads from a stage to the next.
    [[nodiscard]] static pipe link(int from) noexcept {
        return from % 2 == 0 ? pipe::even_links : pipe::odd_links;
    }
    [[nodiscard]] Comm& over(pipe which) noexcept {
        if (which == pipe::back) return back_;
        return which == pipe::odd_links ? *odd_links_ : stages();
    }
    /// All of them: odd links only if there are two links.
    [[nodiscard]] std::vector<Comm*> pipes() {
        std::vector<Comm*> out{&stages(), &back_};
        if (odd_links_) out.push_back(&*odd_links_);
        return out;
    }
    /// Ranks of the same stage with other branches of guidance; null if all branches are here.
    [[nodiscard]] Comm* guides() noexcept {
        return guidance_ < 0 ? nullptr : &axes_[static_cast<std::size_t>(guidance_)];
    }
    [[nodiscard]] int guidance_ranks() const noexcept {
        return guidance_ < 0 ? 1 : axes_[static_cast<std::size_t>(guidance_)].size();
    }
    [[nodiscard]] int guidance_place() const noexcept {
        return guidance_ < 0 ? 0 : axes_[static_cast<std::size_t>(guidance_)].rank();
    }
    /// Whether there are pipelines beside this one.
    [[nodiscard]] bool has_peers() const noexcept { return axes_.size() > 1; }
    /// Whether this pipeline speaks for all of them.
    [[nodiscard]] bool speaks() const noexcept {
        for (std::size_t i = 0; i < axes_.size(); ++i) {
            if (i != stage_ && axes_[i].rank() != 0) return false;
        }
        return true;
    }

    /// Errors: usage_error with one text on every rank of all pipelines unless all pass the same.
    template <class T>
    void agree_on(std::string_view what, const T& value) {
        agree_on_mesh(std::span<Comm* const>(all_axes()), what, value);
    }
    /// Refuses on every rank of all pipelines what one of them refuses.
    void agree_no_error(const std::optional<std::string>& message) {
        agree_no_error_on_mesh(std::span<Comm* const>(all_axes()), message);
    }
    /// What the pipeline that speaks says to its peers. Blocks the host.
    [[nodiscard]] std::string told_by_speaker(std::string text) {
        for (std::size_t i = 0; i < axes_.size(); ++i) {
            if (i != stage_) text = axes_[i].control_all_gather(text).front();
        }
        return text;
    }

    void abort(std::string_view reason) {
        for (Comm& axis : axes_) axis.abort(reason);
        if (odd_links_) odd_links_->abort(reason);
        back_.abort(reason);
    }

private:
    [[nodiscard]] std::vector<Comm*> all_axes() {
        std::vector<Comm*> out;
        for (Comm& axis : axes_) out.push_back(&axis);
        return out;
    }

    std::vector<Comm> axes_;  ///< in the order of the mesh
    std::size_t stage_ = 0;
    int guidance_ = -1;
    std::optional<Comm> odd_links_;
    Comm back_;  ///< from the last stage to the first
};

}  // namespace latpar::inline v0::detail
