// SPDX-License-Identifier: Apache-2.0
// The transformer's self-attention over tokens that lie on several ranks.
#pragma once

#include <latpar/denoise/feature_cache.hpp>
#include <latpar/layer/forward_plan.hpp>
#include <latpar/layer/usp.hpp>

#include <wan/attention.hpp>
#include <wan/config.hpp>

#include <array>
#include <map>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

namespace wan {

/// The model as sequence parallelism plans it, if its queries, keys and values are of `type`.
[[nodiscard]] latpar::layer::transformer_shape transformer_shape_of(
    const config& shape, latpar::dtype type = latpar::dtype::f32);

/// What each rank passes behind its own keys and values if the ranks shared the window that `lent`
/// is of: the rows of it that stood among its tokens.
[[nodiscard]] std::vector<index_t> lent_rows(const latpar::feature_rows& lent, int ranks);

/// An `attention` for `transformer` that spreads the tokens of a window on a mesh of ranks with
/// latpar::layer::usp; everything else of the model then works on this rank's tokens only.
///
/// Rank u along `ulysses` and r along `ring` has the part r * ulysses ranks + u of the tokens, and
/// lends and borrows features of that part. A window of another number of tokens, or with other
/// rows lent, may come at any time; each pair is agreed on once. On a GPU `Local` is
/// cuda::attention, `Kernels` latpar::cuda::kernels, and `Comm` reaches device memory.
///
/// Ranks: all ranks of both communicators construct it and make every call of the model.
/// Memory: from the executor's source.
template <latpar::communicator Comm, attention Local = local_attention,
          latpar::kernel_set Kernels = latpar::kernel::host>
class sequence_parallel {
public:
    using executor = typename Local::executor;

    sequence_parallel(const config& shape, std::shared_ptr<typename Local::executor> exec,
                      Comm& ulysses, Comm& ring)
        : shape_(transformer_shape_of(shape, exec->type()).attention),
          executor_(std::move(exec)),
          ulysses_(&ulysses),
          ring_(&ring) {}

    /// Goes on with windows of so many tokens that are lent those rows.
    void begin(index_t tokens, const latpar::feature_rows& lent = {}) {
        const index_t rows = latpar::volume_of(lent.grid);
        const window next = rows == 0 ? window{tokens, 0, 0, 0}
                                      : window{tokens, rows, lent.origin, lent.window_tokens};
        if (next == window_) return;
        latpar::guarded(*this, [&] {
            auto at = plans_.find(next);
            if (at == plans_.end()) {
                latpar::layer::usp_plan plan = plan_for(tokens, lent);
                if (!policy_) {
                    policy_ =
                        std::make_unique<policy>(Local(executor_), *ulysses_, *ring_,
                                                 std::move(plan), Kernels{}, executor_->memory());
                    at = plans_.emplace(next, 0).first;
                } else {
                    at = plans_.emplace(next, policy_->add(std::move(plan))).first;
                }
            }
            policy_->use(at->second);
            window_ = next;
        });
    }

    [[nodiscard]] std::pair<index_t, index_t> token_range(index_t tokens) const {
        const latpar::layer::usp_plan plan = plan_for(tokens, {});
        const auto [begin, end] = plan.token_range(plan.rank_of(ulysses_->rank(), ring_->rank()));
        return {begin, end};
    }

    void operator()(const_heads_view q, const_heads_view k, const_heads_view v, heads_view out,
                    lse_view lse, latpar::stream_ref stream) {
        (*policy_)(q, k, v, out, lse, stream);
    }

    void gather(latpar::basic_view<std::byte, 2> rows, latpar::stream_ref stream) {
        policy_->gather(rows, stream);
    }

    void abort(std::string_view reason) {
        ulysses_->abort(reason);
        ring_->abort(reason);
    }

private:
    using policy = latpar::layer::usp<Local, Comm, Kernels>;
    /// Tokens; rows that are lent, where those begin in their own window, and its tokens.
    using window = std::array<index_t, 4>;

    [[nodiscard]] latpar::layer::usp_plan plan_for(index_t tokens,
                                                   const latpar::feature_rows& lent) const {
        const int ranks = ulysses_->size() * ring_->size();
        return latpar::layer::plan_usp(
            shape_, {latpar::layer::even_tokens(tokens, ranks), 0, 0, {}, lent_rows(lent, ranks)},
            ulysses_->size(), ring_->size());
    }

    latpar::layer::attention_shape shape_;
    std::shared_ptr<executor> executor_;
    Comm* ulysses_;
    Comm* ring_;
    std::map<window, int> plans_;  // numbers that the policy gave
    std::unique_ptr<policy> policy_;
    window window_{-1, 0, 0, 0};
};

}  // namespace wan
