// SPDX-License-Identifier: Apache-2.0
// Rows and heads of attention tensors, as kernels take them.
#pragma once

#include <latpar/comm/detail/memory_complaint.hpp>
#include <latpar/comm/detail/shared_buffer.hpp>
#include <latpar/layer/attention.hpp>

namespace latpar::inline v0::layer::detail {

/// Rows [begin, begin + count) and heads [first, first + heads) of [tokens, heads, head_dim].
template <class Byte>
[[nodiscard]] basic_view<Byte, 3> part_of(basic_view<Byte, 3> view, index_t begin, index_t count,
                                          index_t first, index_t heads) {
    if (view.data != nullptr) {
        view.data += (begin * view.strides[0] + first * view.strides[1]) * size_of(view.type);
    }
    view.extents[0] = count;
    view.extents[1] = heads;
    return view;
}
template <class Byte>
[[nodiscard]] basic_view<Byte, 3> rows_of(const basic_view<Byte, 3>& view, index_t begin,
                                          index_t count) {
    return part_of(view, begin, count, 0, view.extents[1]);
}
/// Rows of an lse.
[[nodiscard]] inline lse_view rows_of(lse_view view, index_t begin, index_t count) {
    if (view.data != nullptr) view.data += begin * view.strides[0] * size_of(view.type);
    view.extents[0] = count;
    return view;
}

/// The same memory as [1, 1, tokens, heads, head_dim].
template <class Byte>
[[nodiscard]] basic_view<Byte, 5> as_latent(const basic_view<Byte, 3>& view) {
    return {view.data,
            {1, 1, view.extents[0], view.extents[1], view.extents[2]},
            {0, 0, view.strides[0], view.strides[1], view.strides[2]},
            view.type,
            view.space};
}
/// An lse as [1, 1, tokens, heads, 1].
[[nodiscard]] inline latent_view as_latent(const lse_view& view) {
    return {view.data,
            {1, 1, view.extents[0], view.extents[1], 1},
            {0, 0, view.strides[0], view.strides[1], 1},
            view.type,
            view.space};
}

/// Errors: usage_error that prints shape and type of each, unless the views are those of an
/// attention of so many rows of queries and keys on a rank, in the memory of the policy, and out is
/// none of the others.
void check_views(const attention_shape& shape, int rank, index_t queries, index_t keys,
                 memory_space space, const const_heads_view& q, const const_heads_view& k,
                 const const_heads_view& v, const const_heads_view& out);

/// Errors: usage_error unless kernels and communicator reach the memory that a policy is to take.
template <class Comm, class Kernels>
void check_memory(const Comm& comm, const Kernels& kernels, const memory_source& source) {
    const auto complaint = latpar::detail::memory_complaint(comm, kernels, source);
    if (complaint) throw usage_error(*complaint);
}

/// Hands out dense tensors one behind the other in memory that grows when it must, and that the
/// other ranks write to where the communicator lets them.
class arena : public latpar::detail::shared_buffer {
public:
    /// As shared_buffer's; what was handed out before is lost.
    template <class BytesOf, communicator Comm>
    void reserve(const BytesOf& bytes_of, memory_source source, Comm& comm) {
        shared_buffer::reserve(bytes_of, source, comm);
        rewind();
    }
    /// Begins anew; what was handed out before is lost.
    void rewind() noexcept { used_ = 0; }
    template <std::size_t Rank>
    [[nodiscard]] basic_view<std::byte, Rank> take(const std::array<index_t, Rank>& extents,
                                                   dtype type, memory_space space) {
        basic_view<std::byte, Rank> out{data() + used_, extents, dense_strides(extents), type,
                                        space};
        latpar::detail::require<error>(used_ + out.bytes() <= bytes(), "an attention took ",
                                       used_ + out.bytes(), " bytes of the ", bytes(),
                                       " that were planned");
        used_ += latpar::detail::aligned(out.bytes());
        return out;
    }

private:
    index_t used_ = 0;
};

}  // namespace latpar::inline v0::layer::detail
