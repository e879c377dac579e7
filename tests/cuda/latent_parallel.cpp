// SPDX-License-Identifier: Apache-2.0
// LatentParallel in device memory: thread ranks on one device give the bits of one rank alone.
#include <latpar/comm/self.hpp>
#include <latpar/comm/thread_team.hpp>
#include <latpar/cuda/philox_noise.hpp>
#include <latpar/cuda/staged.hpp>
#include <latpar/schedule/by_name.hpp>
#include <latpar/schedule/ddim.hpp>

#include <cuda/device_lab.hpp>
#include <support/catch.hpp>
#include <support/closed_form.hpp>
#include <support/expect.hpp>
#include <support/latent_parallel_run.hpp>

using namespace latpar;

namespace {

/// The closed form for device memory: there and back, and computed on the host.
struct closed_form_on_device {
    closed_form form;

    void operator()(const_latent_view z, const step_info& info, latent_view prediction,
                    stream_ref stream) const {
        cuda::device_memory device;
        const cuda::kernels kernels;
        // Views are strided; what is copied as bytes is dense.
        latent there(z.extents, dtype::f32, device.source());
        latent here(z.extents);
        latent out(prediction.extents);
        kernels.copy(z, there.view(), stream);
        cuda::copy_bytes(here.view().data, there.view().data, here.bytes(), stream);
        form(here.view(), info, out.view(), {});
        cuda::copy_bytes(there.view().data, out.view().data, out.bytes(), stream);
        kernels.copy(std::as_const(there).view(), prediction, stream);
        cuda::synchronize(stream);
    }
};

/// Samples in device memory from the noise of a seed, and brings the latent home.
template <communicator Comm>
std::vector<float> sample_on_device(Comm& comm, const latent_parallel_plan& plan,
                                    const closed_form& form, const sampling_case& c) {
    const cuda::stream stream;
    cuda::device_memory device;
    latent_parallel policy(closed_form_on_device{form}, comm, plan, cuda::kernels{},
                           device.source());
    loop::serial loop(policy, c.schedule, c.extents, cuda::kernels{}, dtype::f32, device.source());
    const cuda::philox_noise noise(c.seed);
    loop.start(noise, stream);
    loop.run(noise, stream.ref());
    latent whole(c.extents, dtype::f32, device.source());
    loop.collect(whole.view(), stream);
    std::vector<float> out(static_cast<std::size_t>(whole.view().elements()));
    cuda::copy_bytes(out.data(), whole.view().data, whole.bytes(), stream);
    return out;
}

}  // namespace

TEST_CASE("thread ranks on one device give the bits of one rank, and of the host") {
    const closed_form form{0.7f, -0.3f, 4.0f};
    const int ranks = GENERATE(2, 3);
    // Without a history, with one, and with noise of its own.
    for (const linear_scheduler& sampler :
         {schedule::by_name("euler_flow", 6), schedule::by_name("unipc_flow", 6),
          schedule::ddim({.steps = 6, .eta = 0.5})}) {
        const sampling_case c{{1, 4, 5, 8, 12}, sampler, 11};
        for (const latent_layout layout :
             {latent_layout::central, latent_layout::replicated, latent_layout::sharded}) {
            for (const dtype wire : {dtype::f32, dtype::bf16}) {
                latent_parallel_options options;
                options.layout = layout;
                options.wire_prediction = options.wire_state = wire;
                const auto plan = plan_latent_parallel(c.problem(), options, ranks);
                options.parts = ranks;
                const auto alone_plan = plan_latent_parallel(c.problem(), options, 1);
                CAPTURE(sampler.name(), name_of(layout), name_of(wire));

                cuda::staged alone(self_communicator{});
                const auto expected = sample_on_device(alone, alone_plan, form, c);
                std::vector<std::vector<float>> got(static_cast<std::size_t>(ranks));
                thread_team(ranks).run([&](thread_communicator& inner) {
                    cuda::staged comm(std::move(inner));
                    got[static_cast<std::size_t>(comm.rank())] =
                        sample_on_device(comm, plan, form, c);
                });
                for (const std::vector<float>& one : got) CHECK(one == expected);

                self_communicator host;
                CHECK(sample_in_parallel(host, alone_plan, form, c).latent == expected);
            }
        }
    }
}

TEST_CASE("ranks of a device that would draw from different sources are told") {
    const sampling_case c{{1, 2, 4, 6, 6}, schedule::by_name("euler_flow", 3), 1};
    const auto plan = plan_latent_parallel(c.problem(), {}, 2);
    thread_team(2).run([&](thread_communicator& inner) {
        cuda::staged comm(std::move(inner));
        sampling_case own = c;
        own.seed += static_cast<std::uint64_t>(comm.rank());
        expect_throws([&] { static_cast<void>(sample_on_device(comm, plan, {}, own)); },
                      "philox_noise(2)");
    });
}
