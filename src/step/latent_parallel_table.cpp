// SPDX-License-Identifier: Apache-2.0
// The plan of LatentParallel as text.
#include <latpar/step/latent_parallel_plan.hpp>

#include <core/mebibytes.hpp>

#include <iomanip>
#include <sstream>

namespace latpar::inline v0 {

using detail::mebibytes;

namespace {

std::string range(const box& b, axis along) {
    return detail::concat('[', b.begin(along), ',', b.end(along), ')');
}

void print_cut(std::ostream& out, const latent_parallel_plan& plan, const latent_cut& cut) {
    out << "\ncut along " << name_of(cut.along) << " (" << plan.problem.extents[index_of(cut.along)]
        << " positions, patch " << plan.options.patch[index_of(cut.along)] << ")\n"
        << "  part  rank        core      window   share\n";
    for (std::size_t k = 0; k < cut.parts.size(); ++k) {
        const latent_part& part = cut.parts[k];
        out << "  " << std::setw(4) << k << "  " << std::setw(4) << (plan.simulated() ? 0 : k);
        if (part.window.empty()) {
            out << "        idle\n";
            continue;
        }
        out << "  " << std::setw(10) << range(part.core, cut.along) << "  " << std::setw(10)
            << range(part.window, cut.along) << "  " << std::setw(5)
            << 100.0 * static_cast<double>(part.window.volume()) /
                   static_cast<double>(volume_of(plan.problem.extents))
            << "%\n";
    }
}

}  // namespace

std::string to_table(const latent_parallel_plan& plan) {
    std::ostringstream out;
    out << std::fixed << std::setprecision(1);
    const latent_problem& problem = plan.problem;
    out << "LatentParallel: latent " << problem.batch << 'x' << problem.channels << 'x'
        << problem.extents[0] << 'x' << problem.extents[1] << 'x' << problem.extents[2] << ' '
        << name_of(problem.type) << ", " << problem.steps << " steps, " << plan.parts()
        << (plan.parts() == 1 ? " part on " : " parts on ") << plan.ranks
        << (plan.ranks == 1 ? " rank" : " ranks") << "\noverlap " << std::setprecision(2)
        << plan.options.overlap << ", cores " << name_of(plan.options.cores) << ", layout "
        << name_of(plan.options.layout) << ", predictions travel as "
        << name_of(plan.options.wire_prediction) << ", state as "
        << name_of(plan.options.wire_state) << '\n'
        << std::setprecision(1);
    for (const latent_cut& cut : plan.cuts) print_cut(out, plan, cut);

    out << std::setprecision(2) << "\n  rank  sent MiB  received MiB  workspace MiB\n";
    for (int rank = 0; rank < plan.ranks; ++rank) {
        out << "  " << std::setw(4) << rank << "  " << std::setw(8)
            << mebibytes(plan.bytes_sent_by(rank)) << "  " << std::setw(12)
            << mebibytes(plan.bytes_received_by(rank)) << "  " << std::setw(13)
            << mebibytes(plan.workspace_bytes(rank)) << '\n';
    }
    const index_t paper = plan.paper_bytes();
    out << "\ndenoiser calls   " << problem.steps << " on the critical path, "
        << plan.denoiser_calls() << " in all\n"
        << "critical path    " << 100.0 * plan.critical_fraction()
        << "% of the positions that one rank alone denoises\n"
        << "bytes            " << plan.bytes() << " = " << mebibytes(plan.bytes()) << " MiB\n"
        << "the paper counts " << paper << " = " << mebibytes(paper) << " MiB; ratio "
        << std::setprecision(3) << static_cast<double>(plan.bytes()) / static_cast<double>(paper)
        << '\n';
    return std::move(out).str();
}

}  // namespace latpar::inline v0
