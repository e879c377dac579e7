// SPDX-License-Identifier: Apache-2.0
// The figures of a run, as JSON and as a table for people.
#include <latpar/core/error.hpp>

#include <generate/report.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <iomanip>
#include <sstream>

namespace generate {
namespace {

using json = nlohmann::ordered_json;
using latpar::index_t;

template <class T>
json or_null(const std::optional<T>& value) {
    return value ? json(*value) : json(nullptr);
}

std::string mebibytes(index_t bytes) {
    std::ostringstream out;
    out << std::fixed << std::setprecision(2) << static_cast<double>(bytes) / (1024.0 * 1024.0)
        << " MiB";
    return std::move(out).str();
}

template <class T>
std::string fixed(const T& value, int digits, const char* unit) {
    std::ostringstream out;
    out << std::fixed << std::setprecision(digits) << value << unit;
    return std::move(out).str();
}

json rounds_json(const report& r) {
    if (!r.rounds) return nullptr;
    return {{"steps", r.rounds->steps},
            {"warm_up", r.rounds->warm_up},
            {"reuse", r.rounds->reuse},
            {"history", r.rounds->history}};
}

json calls_json(const report& r) {
    if (!r.calls) return nullptr;
    return {{"total", r.calls->total},
            {"critical_path", r.calls->critical_path},
            {"critical_fraction", r.critical_fraction}};
}

json model_calls_json(const report& r) {
    if (!r.calls) return nullptr;
    return {{"total", r.calls->model_total},
            {"critical_path", r.calls->model_critical_path},
            {"serial", r.calls->model_serial}};
}

json video_json(const report& r) {
    if (!r.video) return nullptr;
    const video_figures& v = *r.video;
    const json total = v.total_latents > 0 ? json(v.total_latents) : json(nullptr);
    return {{"block_latents", v.block_latents},
            {"cat_latents", v.cat_latents},
            {"total_latents", total},
            {"first_latent", v.first_latent},
            {"latents", v.latents},
            {"blocks", v.blocks},
            {"first_iteration", v.first_iteration},
            {"iterations", v.iterations},
            {"tasks", v.tasks},
            {"seconds_per_latent", v.latents > 0 ? json(v.seconds_per_latent) : json(nullptr)},
            {"idle_share",
             {{"planned", {{"mean", v.mean_idle_planned}, {"ranks", v.idle_planned}}},
              {"measured", v.mean_idle_measured
                               ? json{{"mean", *v.mean_idle_measured}, {"ranks", v.idle_measured}}
                               : json(nullptr)}}}};
}

/// "2 threads each", or "bf16 on NVIDIA H200, device 0; NVIDIA H200, device 1".
std::string computing_on(const report& r) {
    if (r.devices.empty()) {
        return latpar::detail::concat(r.threads, r.threads == 1 ? " thread each" : " threads each");
    }
    std::string out = r.precision + " on ";
    std::vector<std::string> names = r.devices;
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    for (const std::string& name : names) out += (&name == &names.front() ? "" : "; ") + name;
    return out;
}

index_t largest(const std::vector<index_t>& values) {
    return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

}  // namespace

std::string to_json(const report& r) {
    json axes;
    for (const axis_bytes& a : r.bytes_of_axes) {
        axes[a.axis] = {{"planned", a.planned}, {"metered", a.metered}};
    }
    const json out{{"policy", r.policy},
                   {"mesh", r.mesh},
                   {"ranks", r.ranks},
                   {"backend", r.backend},
                   {"device", r.device},
                   {"devices", r.devices},
                   {"precision", r.precision},
                   {"model", r.model},
                   {"latent", r.latent},
                   {"steps", r.steps},
                   {"seed", r.seed},
                   {"scheduler", r.scheduler},
                   {"threads", r.threads},
                   {"rounds", rounds_json(r)},
                   {"video", video_json(r)},
                   {"wall_seconds", r.wall_seconds},
                   {"denoiser_calls", calls_json(r)},
                   {"model_calls", model_calls_json(r)},
                   {"bytes",
                    {{"planned", r.bytes_planned},
                     {"total", r.bytes_total},
                     {"sent", r.bytes_sent},
                     {"axes", axes},
                     {"paper", or_null(r.bytes_paper)}}},
                   {"workspace_bytes", r.workspace_bytes},
                   {"peak_bytes", r.peak_bytes},
                   {"serial",
                    {{"wall_seconds", or_null(r.serial_wall_seconds)},
                     {"peak_bytes", or_null(r.serial_peak_bytes)}}},
                   {"psnr_db", or_null(r.psnr_db)},
                   {"relative_error", or_null(r.relative_error)}};
    return out.dump(2) + '\n';
}

std::string to_summary(const report& r) {
    std::ostringstream out;
    const bool compared = r.serial_wall_seconds.has_value();
    const auto row = [&](const std::string& name, const std::string& here,
                         const std::string& alone = {}) {
        out << "  " << std::left << std::setw(30) << name << std::right << std::setw(18) << here;
        if (compared) out << std::setw(18) << alone;
        out << '\n';
    };
    out << r.policy << ", mesh " << r.mesh << ", " << r.ranks << (r.ranks == 1 ? " rank" : " ranks")
        << " (" << r.backend << ", " << computing_on(r) << "), latent " << r.latent[0] << 'x'
        << r.latent[1] << 'x' << r.latent[2] << 'x' << r.latent[3] << ", " << r.steps
        << " steps of " << r.scheduler << ", seed " << r.seed << '\n';
    row("", r.ranks == 1 ? "this run" : std::to_string(r.ranks) + " ranks", "1 rank alone");
    row("wall time", fixed(r.wall_seconds, 1, " s"),
        compared ? fixed(*r.serial_wall_seconds, 1, " s") : "");
    const auto calls = [&](const std::string& name, index_t here, index_t alone) {
        const std::string against = latpar::detail::concat(" (serial ", alone, ')');
        row(name, std::to_string(here) + (compared ? "" : against), std::to_string(alone));
    };
    if (r.calls) {
        calls("denoiser calls, critical path", r.calls->critical_path, r.steps);
        calls("model calls, critical path", r.calls->model_critical_path, r.calls->model_serial);
        row("  of which each denoises", fixed(100 * r.critical_fraction, 0, "% of latent"),
            "100% of latent");
        calls("model calls, all ranks", r.calls->model_total, r.calls->model_serial);
    }
    if (r.video) {
        const video_figures& v = *r.video;
        const auto share = [](double value) { return fixed(100 * value, 1, " %"); };
        const std::string total =
            v.total_latents > 0 ? latpar::detail::concat(" of ", v.total_latents) : "";
        row("latents delivered", latpar::detail::concat(v.latents, total));
        if (v.first_latent > 0) row("  from number", std::to_string(v.first_latent));
        row("blocks, iterations", latpar::detail::concat(v.blocks, ", ", v.iterations));
        if (v.latents > 0) row("time for a latent", fixed(v.seconds_per_latent, 2, " s"));
        row("stages idle, planned", share(v.mean_idle_planned), share(0));
        if (v.mean_idle_measured) row("stages idle, measured", share(*v.mean_idle_measured));
    }
    row("bytes sent, planned", mebibytes(r.bytes_planned), mebibytes(0));
    row("bytes sent, metered", mebibytes(r.bytes_total), mebibytes(0));
    for (const axis_bytes& a : r.bytes_of_axes) {
        if (a.metered > 0) row("  along " + a.axis, mebibytes(a.metered));
    }
    if (r.bytes_paper) row("  by the paper's accounting", mebibytes(*r.bytes_paper));
    row("workspace, largest rank", mebibytes(largest(r.workspace_bytes)));
    row("peak memory, largest rank", mebibytes(largest(r.peak_bytes)),
        r.serial_peak_bytes ? mebibytes(*r.serial_peak_bytes) : "");
    if (r.psnr_db) row("PSNR against one rank", fixed(*r.psnr_db, 2, " dB"));
    if (r.relative_error) row("relative error of the latent", fixed(*r.relative_error, 6, ""));
    return std::move(out).str();
}

}  // namespace generate
