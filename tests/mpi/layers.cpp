// SPDX-License-Identifier: Apache-2.0
// Layer policies between processes: in the Wan transformer, alone and under other policies.
#include <latpar/mpi/communicator.hpp>

#include <models/wan_on_mesh.hpp>
#include <support/attention_case.hpp>
#include <support/catch.hpp>

using namespace latpar;

namespace {

/// Empty if every rank's verdict is; the same on every rank.
std::string gathered(const std::string& verdict) {
    auto world = mpi::communicator::world();
    std::string out;
    for (const std::string& text : world.control_all_gather(verdict)) out += text;
    return out;
}

}  // namespace

TEST_CASE("the recorded outputs come out between processes, on every mesh") {
    auto world = mpi::communicator::world();
    const auto heads =
        wan::load_weights(reference_file("wan_tiny.safetensors"))->config.num_attention_heads;
    for (const mesh_shape& shape : layer_meshes(world.size())) {
        if (shape.degree("ulysses") > heads) continue;
        CAPTURE(to_string(shape));
        CHECK(gathered(recorded_on_mesh(world, shape)) == "");
    }
}

TEST_CASE("nests with layer policies run between processes") {
    auto world = mpi::communicator::world();
    for (const int layers : {2, 3}) {
        for (const char* axis : {"latent", "guidance", "step"}) {
            if (world.size() % layers != 0) continue;
            const int rest = world.size() / layers;
            if (rest > 2) continue;
            const mesh_shape shape{{axis, rest}, {"ulysses", layers}};
            CAPTURE(to_string(shape));
            CHECK(gathered(nest_on_mesh(world, shape, latent_layout::replicated)) == "");
        }
    }
}

TEST_CASE("drawn shapes between processes equal attention on one rank") {
    auto world = mpi::communicator::world();
    std::mt19937 random(3);
    const auto draw = [&](int low, int high) {
        return std::uniform_int_distribution<int>(low, high)(random);
    };
    const int ranks = world.size();
    for (int trial = 0; trial < 30; ++trial) {
        const int key_heads = draw(1, 4);
        const layer::attention_shape shape{key_heads * draw(2, 4), key_heads, 2 * draw(1, 5),
                                           dtype::f32};
        layer::token_sequence sequence{{}, draw(0, 3), draw(0, 3), {}};
        index_t all = sequence.joint_front + sequence.joint_back;
        for (int r = 0; r < ranks; ++r) all += sequence.tokens.emplace_back(draw(0, 7));
        for (index_t i = 0; i < all && trial % 2 == 0; ++i) {
            sequence.is_key.push_back(draw(0, 2) > 0);
        }
        const attention_case c(shape, sequence, random);
        const auto expected = c.rows_of(c.expected(), world.rank());
        std::string verdict;
        layer::ring ring(layer::reference_attention{}, world,
                         layer::plan_ring(shape, sequence, ranks));
        if (!(relative_l2(attend_on_rank(ring, c, world.rank(), trial % 3 == 0), expected) < 1e-5))
            verdict += "ring; ";
        if (ranks <= shape.heads) {
            layer::ulysses ulysses(layer::reference_attention{}, world,
                                   layer::plan_ulysses(shape, sequence, ranks));
            if (attend_on_rank(ulysses, c, world.rank(), trial % 3 == 0) != expected)
                verdict += "ulysses; ";
        }
        const int degree = draw(1, 3);
        if (ranks % degree == 0 && degree <= shape.heads) {
            const auto plan = layer::plan_usp(shape, sequence, degree, ranks / degree);
            metered comm(world.duplicate());
            mesh<metered<mpi::communicator>> axes(comm,
                                                  {{"ring", ranks / degree}, {"ulysses", degree}});
            layer::usp usp(layer::reference_attention{}, axes.axis("ulysses"), axes.axis("ring"),
                           plan);
            if (!(relative_l2(attend_on_rank(usp, c, world.rank(), trial % 3 == 0), expected) <
                  1e-5))
                verdict += "usp; ";
            const traffic total = comm.account().total();
            if (total.bytes_sent != plan.bytes_sent_by(world.rank()) ||
                total.bytes_received != plan.bytes_received_by(world.rank()))
                verdict += "bytes of usp; ";
        }
        CAPTURE(trial);
        CHECK(gathered(verdict) == "");
    }
}
