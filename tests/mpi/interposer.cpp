// SPDX-License-Identifier: Apache-2.0
// Definitions of MPI functions that count and forward to PMPI.
#include <mpi.h>
#include <mpi/interposer.hpp>

namespace {

latpar::traffic counted;
int unexpected = 0;

latpar::index_t bytes_of(int count, MPI_Datatype type) {
    MPI_Count size = 0;
    PMPI_Type_size_x(type, &size);
    return static_cast<latpar::index_t>(count) * size;
}

/// What a rank sends to itself is no traffic, even where it goes through MPI.
bool is_own(int peer, MPI_Comm comm) {
    int rank = 0;
    PMPI_Comm_rank(comm, &rank);
    return peer == rank;
}

}  // namespace

latpar::traffic interposed_traffic() {
    return counted;
}

int unexpected_calls() {
    return unexpected;
}

extern "C" {

int MPI_Isend(const void* data, int count, MPI_Datatype type, int target, int tag, MPI_Comm comm,
              MPI_Request* request) {
    if (tag < 100 && !is_own(target, comm)) {
        counted.bytes_sent += bytes_of(count, type);
        ++counted.messages_sent;
    }
    return PMPI_Isend(data, count, type, target, tag, comm, request);
}

int MPI_Irecv(void* data, int count, MPI_Datatype type, int source, int tag, MPI_Comm comm,
              MPI_Request* request) {
    // Payload is received whatever its tag, which is the sender's dtype.
    if ((tag == MPI_ANY_TAG || tag < 100) && !is_own(source, comm)) {
        counted.bytes_received += bytes_of(count, type);
        ++counted.messages_received;
    }
    return PMPI_Irecv(data, count, type, source, tag, comm, request);
}

int MPI_Send(const void* data, int count, MPI_Datatype type, int target, int tag, MPI_Comm comm) {
    ++unexpected;
    return PMPI_Send(data, count, type, target, tag, comm);
}

int MPI_Sendrecv(const void* out, int out_count, MPI_Datatype out_type, int target, int out_tag,
                 void* in, int in_count, MPI_Datatype in_type, int source, int in_tag,
                 MPI_Comm comm, MPI_Status* status) {
    ++unexpected;
    return PMPI_Sendrecv(out, out_count, out_type, target, out_tag, in, in_count, in_type, source,
                         in_tag, comm, status);
}

int MPI_Bcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm comm) {
    ++unexpected;
    return PMPI_Bcast(data, count, type, root, comm);
}

int MPI_Allgather(const void* out, int out_count, MPI_Datatype out_type, void* in, int in_count,
                  MPI_Datatype in_type, MPI_Comm comm) {
    ++unexpected;
    return PMPI_Allgather(out, out_count, out_type, in, in_count, in_type, comm);
}

int MPI_Allgatherv(const void* out, int out_count, MPI_Datatype out_type, void* in,
                   const int in_counts[], const int offsets[], MPI_Datatype in_type,
                   MPI_Comm comm) {
    ++unexpected;
    return PMPI_Allgatherv(out, out_count, out_type, in, in_counts, offsets, in_type, comm);
}

int MPI_Alltoallv(const void* out, const int out_counts[], const int out_offsets[],
                  MPI_Datatype out_type, void* in, const int in_counts[], const int in_offsets[],
                  MPI_Datatype in_type, MPI_Comm comm) {
    ++unexpected;
    return PMPI_Alltoallv(out, out_counts, out_offsets, out_type, in, in_counts, in_offsets,
                          in_type, comm);
}

int MPI_Allreduce(const void* out, void* in, int count, MPI_Datatype type, MPI_Op op,
                  MPI_Comm comm) {
    ++unexpected;
    return PMPI_Allreduce(out, in, count, type, op, comm);
}

}  // extern "C"
