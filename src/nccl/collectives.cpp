// SPDX-License-Identifier: Apache-2.0
// NCCL's own collectives, on the stream of the communicator.
#include <latpar/nccl/collectives.hpp>

#include <nccl/channel.hpp>

namespace latpar::inline v0::nccl {

struct detail::insight {
    static channel& of(communicator& comm) noexcept { return *comm.channel_; }
};

namespace {

bool is_on_host(const const_elements& data) {
    return data.space == memory_space::host;
}

std::size_t bytes_of(const const_elements& data) {
    return static_cast<std::size_t>(data.count * size_of(data.type));
}

ncclDataType_t type_of(dtype type) {
    switch (type) {
        case dtype::f32:
            return ncclFloat32;
        case dtype::f64:
            return ncclFloat64;
        case dtype::bf16:
            return ncclBfloat16;
        case dtype::f16:
            return ncclFloat16;
        case dtype::i32:
            return ncclInt32;
        case dtype::i64:
            return ncclInt64;
        case dtype::u8:
            return ncclUint8;
        default:
            throw usage_error(
                latpar::detail::concat("all_reduce over NCCL does not take ", name_of(type)));
    }
}

ncclRedOp_t operation_of(reduce_op op) {
    return op == reduce_op::sum ? ncclSum : op == reduce_op::max ? ncclMax : ncclMin;
}

}  // namespace

void all_gather(communicator& comm, const_elements mine, elements all, stream_ref stream) {
    if (is_on_host(mine) || is_on_host(all) || comm.size() == 1) {
        latpar::all_gather<communicator>(comm, mine, all, stream);
        return;
    }
    latpar::detail::require_elements("all_gather", all.count, mine.count * comm.size());
    latpar::detail::require_type(mine.type, all.type);
    detail::insight::of(comm).run_collective("all_gather", stream, [&](cudaStream_t on) {
        return ncclAllGather(mine.data, all.data, bytes_of(mine), ncclUint8, comm.handle(), on);
    });
}

void broadcast(communicator& comm, elements data, int root, stream_ref stream) {
    if (is_on_host(data) || comm.size() == 1) {
        latpar::broadcast<communicator>(comm, data, root, stream);
        return;
    }
    latpar::detail::require_root(root, comm.size());
    detail::insight::of(comm).run_collective("broadcast", stream, [&](cudaStream_t on) {
        return ncclBroadcast(data.data, data.data, bytes_of(data), ncclUint8, root, comm.handle(),
                             on);
    });
}

void all_reduce(communicator& comm, elements values, reduce_op op, stream_ref stream) {
    latpar::detail::require(!is_on_host(values),
                            "all_reduce of device memory was given host memory; pass a span of "
                            "values, or device memory");
    const ncclDataType_t type = type_of(values.type);
    if (comm.size() == 1) return;
    detail::insight::of(comm).run_collective("all_reduce", stream, [&](cudaStream_t on) {
        return ncclAllReduce(values.data, values.data, static_cast<std::size_t>(values.count), type,
                             operation_of(op), comm.handle(), on);
    });
}

}  // namespace latpar::inline v0::nccl
