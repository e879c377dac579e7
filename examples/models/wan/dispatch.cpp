// SPDX-License-Identifier: Apache-2.0
// Which kernels this processor runs.
#include <latpar/core/error.hpp>

#include <wan/dispatch.hpp>

#include <string>

namespace wan {

// One object of kernels.cpp each.
const kernel_table& kernels_baseline();
const kernel_table& kernels_avx2();
const kernel_table& kernels_avx512();

namespace {

std::vector<const kernel_table*> find_available() {
    std::vector<const kernel_table*> out{&kernels_baseline()};
#if defined(WAN_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        out.push_back(&kernels_avx2());
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
            out.push_back(&kernels_avx512());
        }
    }
#endif
    return out;
}

// Found once: the tables are set up on first use.
const std::vector<const kernel_table*>& available() {
    static const std::vector<const kernel_table*> tables = find_available();
    return tables;
}

}  // namespace

std::vector<std::string_view> available_kernels() {
    std::vector<std::string_view> out;
    for (const kernel_table* table : available()) out.emplace_back(table->name);
    return out;
}

const kernel_table& find_kernels(std::string_view name) {
    const auto& tables = available();
    if (name == "auto") return *tables.back();
    std::string known = "auto";
    for (const kernel_table* table : tables) {
        if (name == table->name) return *table;
        known += std::string(", ") + table->name;
    }
    throw latpar::usage_error(latpar::detail::concat("there are no kernels '", name,
                                                     "' for this processor; use ", known));
}

}  // namespace wan
