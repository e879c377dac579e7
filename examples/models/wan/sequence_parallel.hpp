// SPDX-License-Identifier: Apache-2.0
// The transformer's self-attention over tokens that lie on several ranks.
#pragma once

#include <latpar/layer/forward_plan.hpp>
#include <latpar/layer/usp.hpp>

#include <wan/attention.hpp>
#include <wan/config.hpp>

#include <map>
#include <memory>
#include <string_view>
#include <utility>

namespace wan {

/// The model as sequence parallelism plans it.
[[nodiscard]] latpar::layer::transformer_shape transformer_shape_of(const config& shape);

/// An `attention` for `transformer` that spreads the tokens of a window on a mesh of ranks with
/// latpar::layer::usp; everything else of the model then works on this rank's tokens only.
///
/// Rank u along `ulysses` and r along `ring` has the part r * ulysses ranks + u of the tokens. A
/// window of another number of tokens may come at any time; each number is agreed on once.
///
/// Ranks: all ranks of both communicators construct it and make every call of the model.
/// Memory: from the executor's source.
template <latpar::communicator Comm>
class sequence_parallel {
public:
    sequence_parallel(const config& shape, std::shared_ptr<executor> exec, Comm& ulysses,
                      Comm& ring)
        : shape_(transformer_shape_of(shape).attention),
          executor_(std::move(exec)),
          ulysses_(&ulysses),
          ring_(&ring) {}

    /// Goes on with windows of so many tokens.
    void begin(index_t tokens) {
        if (tokens == tokens_) return;
        const auto [at, is_new] = plans_.try_emplace(tokens);
        if (is_new) {
            const int ranks = ulysses_->size() * ring_->size();
            at->second = latpar::layer::plan_usp(
                shape_, {latpar::layer::even_tokens(tokens, ranks), 0, 0, {}}, ulysses_->size(),
                ring_->size());
        }
        if (policy_) {
            policy_->use(at->second, !is_new);
        } else {
            policy_ =
                std::make_unique<policy>(local_attention(executor_), *ulysses_, *ring_, at->second,
                                         latpar::kernel::host{}, executor_->memory());
        }
        tokens_ = tokens;
    }

    [[nodiscard]] std::pair<index_t, index_t> token_range(index_t tokens) const {
        const int ranks = ulysses_->size() * ring_->size();
        const int rank = ring_->rank() * ulysses_->size() + ulysses_->rank();
        index_t begin = 0;
        const auto counts = latpar::layer::even_tokens(tokens, ranks);
        for (int r = 0; r < rank; ++r) begin += counts[static_cast<std::size_t>(r)];
        return {begin, begin + counts[static_cast<std::size_t>(rank)]};
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
    using policy = latpar::layer::usp<local_attention, Comm>;

    latpar::layer::attention_shape shape_;
    std::shared_ptr<executor> executor_;
    Comm* ulysses_;
    Comm* ring_;
    std::map<index_t, latpar::layer::usp_plan> plans_;
    std::unique_ptr<policy> policy_;
    index_t tokens_ = -1;
};

}  // namespace wan
