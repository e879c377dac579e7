// SPDX-License-Identifier: Apache-2.0
// ParaStep, planned: who calls the model for which denoising step, and what travels.
#pragma once

#include <latpar/core/box.hpp>
#include <latpar/schedule/latent_problem.hpp>

#include <optional>
#include <string>
#include <vector>

namespace latpar::inline v0::loop {

/// What becomes of a multistep scheduler's history at the end of a round.
enum class history : std::uint8_t {
    official,  ///< each rank keeps its own, as the paper's code does: ranks drift apart
    shared,    ///< every rank gets rank 0's: their states are equal to the bit
};

/// The prediction with which a rank steps on to the step of its own call.
enum class reuse : std::uint8_t {
    own,           ///< the last that it computed itself, as the paper's code does
    newest,        ///< the round's last, of whatever rank
    extrapolated,  ///< the line through the last two, at the timestep where it is used
};

[[nodiscard]] std::string_view name_of(history kind) noexcept;
[[nodiscard]] std::string_view name_of(reuse kind) noexcept;

/// How ParaStep is to run.
struct para_step_options {
    /// M: steps that every rank does by itself at first; 1 to all of them. Quality lives on them.
    index_t warm_up = 5;
    loop::history history = history::shared;
    /// As near to serial as newest, on the whole, and sends less; extrapolated is far off at p = 4.
    loop::reuse reuse = reuse::own;
    /// What predictions travel as. Nothing travels in a wider type than the latent's.
    dtype wire_prediction = dtype::f32;
    /// What the latent and the scheduler's history travel as.
    dtype wire_state = dtype::f32;
    /// p: steps in a round; 0: one for each rank. Only a single rank may simulate more than one.
    int degree = 0;
    /// Whether every rank, or rank 0 alone, has the latent at the end.
    bool result_everywhere = true;
    /// What a rank here holds, where the model's ranks share the latent; none: all of it.
    std::optional<box> held{};
};

/// One tensor that goes from rank to rank.
struct para_step_message {
    int from = 0;
    int to = 0;
    /// -1: a prediction or the latent; else the number of a history tensor.
    int tensor = -1;
    index_t bytes = 0;

    friend bool operator==(const para_step_message&, const para_step_message&) = default;
};

/// `count` consecutive steps whose model calls run at once: rank r makes that of step `first + r`.
struct para_step_round {
    index_t first = 0;
    index_t count = 0;
    /// The predictions, to rank 0, which steps with them.
    std::vector<para_step_message> predictions;
    /// Predictions that the next round reuses, between the other ranks.
    std::vector<para_step_message> reused;
    /// The latent and the history that is still read, from rank 0, at the end of the round.
    std::vector<para_step_message> state;
};

/// A whole sampling run, planned. Immutable; two equal plans send the same bytes in the same order.
struct para_step_plan {
    latent_problem problem;
    para_step_options options;  ///< degree and held resolved
    int ranks = 1;
    std::vector<para_step_round> rounds;    ///< after the warm-up
    std::vector<para_step_message> result;  ///< the latent, to the ranks that get it at the end

    [[nodiscard]] int degree() const noexcept { return options.degree; }
    /// One rank makes the calls of all ranks in turn.
    [[nodiscard]] bool simulated() const noexcept { return ranks == 1; }

    /// How many of the last predictions the ranks keep to reuse: none if each reuses its own.
    [[nodiscard]] int kept_predictions() const noexcept;
    /// Whether a rank's predictions travel. They are then rounded to what they travel as.
    [[nodiscard]] bool sends_predictions(int rank) const noexcept;
    [[nodiscard]] bool rounds_predictions() const noexcept {
        return degree() > 1 && options.wire_prediction != problem.type;
    }
    /// Whether the latent and the history are rounded after each round.
    [[nodiscard]] bool rounds_state() const noexcept {
        return degree() > 1 && options.wire_state != problem.type;
    }

    /// Model calls on the critical path: M + ceil((T - M) / p).
    [[nodiscard]] index_t critical_path_calls() const;
    /// Model calls of one rank, and of all of them.
    [[nodiscard]] index_t calls_by(int rank) const;
    [[nodiscard]] index_t denoiser_calls() const;
    /// The steps at which a rank calls the model, in order.
    [[nodiscard]] std::vector<index_t> steps_of(int rank) const;
    /// How much faster than one rank the run can be, were everything but the model free.
    [[nodiscard]] double speed_up_ceiling() const;

    /// Payload bytes of the run, the result included; or of one stopped after so many rounds.
    [[nodiscard]] index_t bytes() const;
    [[nodiscard]] index_t bytes_after(std::size_t rounds_done) const;
    [[nodiscard]] index_t bytes_sent_by(int rank) const;
    [[nodiscard]] index_t bytes_received_by(int rank) const;
    /// What the public code of the paper sends: predictions of both guidance branches to rank 0 and
    /// the latent to all, after every round.
    [[nodiscard]] index_t paper_bytes() const;
    /// Host or device bytes that the loop takes on a rank: latent, prediction, history, messages,
    /// and noise where some is drawn.
    [[nodiscard]] index_t workspace_bytes(int rank) const;

    /// What every rank of the model has in common too: problem and options but for what is held.
    [[nodiscard]] std::string run_fingerprint() const;
    /// One line that is equal exactly if problem, options and ranks are.
    [[nodiscard]] std::string fingerprint() const;
};

/// Plans ParaStep for `ranks` ranks, each with the whole model.
///
/// Errors: usage_error, naming value and remedy, for a warm-up out of range, a degree that the
/// ranks cannot take, a prediction of other channels than the latent, types that are not computed
/// with, or a held box that does not fit the latent.
/// Source: ParaStep (arXiv 2505.14741) and its public code; `shared`, `newest` and `extrapolated`
/// are latpar's.
[[nodiscard]] para_step_plan plan_para_step(const latent_problem& problem,
                                            para_step_options options, int ranks);

/// The plan as a table for people.
[[nodiscard]] std::string to_table(const para_step_plan& plan);

}  // namespace latpar::inline v0::loop
