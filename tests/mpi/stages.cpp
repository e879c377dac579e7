// SPDX-License-Identifier: Apache-2.0
// DualParal between processes whose stages share the tokens.
#include <latpar/mpi/communicator.hpp>

#include <models/wan_stages_on_mesh.hpp>
#include <mpi/interposer.hpp>
#include <support/catch.hpp>

using namespace latpar;

TEST_CASE("stages between processes share the tokens, and send the bytes of the plan") {
    auto world = mpi::communicator::world();
    const int ranks = world.size();
    const staged_video video;
    const auto expected = video.expected();
    for (const char* axis : {"ulysses", "ring"}) {
        const mesh_shape shape{{"stage", (ranks + 1) / 2}, {axis, ranks > 1 ? 2 : 1}};
        for (const bool takes_mesh : {false, true}) {
            CAPTURE(to_string(shape), takes_mesh);
            const index_t before = interposed_traffic().bytes_sent;
            index_t planned = 0;
            std::string verdict =
                video_on_mesh(world, shape, video, expected, takes_mesh, &planned);
            if (interposed_traffic().bytes_sent - before != planned) {
                verdict += "interposed bytes; ";
            }
            std::string all;
            for (const std::string& text : world.control_all_gather(verdict)) all += text;
            CHECK(all == "");
        }
    }
}
