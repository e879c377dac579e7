// SPDX-License-Identifier: Apache-2.0
// JSON values in the metadata of the moving-shapes weights.
#pragma once

#include <latpar/io/safetensors.hpp>

#include <nlohmann/json.hpp>

#include <string>

namespace moving_shapes {

/// The metadata key `name`, parsed. Errors: io_error if it is missing or no JSON object.
[[nodiscard]] inline nlohmann::json metadata_object(const latpar::safetensors_file& file,
                                                    const std::string& name) {
    const auto found = file.metadata().find(name);
    latpar::detail::require<latpar::io_error>(
        found != file.metadata().end(), file.path(), " has no metadata '", name,
        "'; it must be the weights of the moving-shapes model");
    auto object = nlohmann::json::parse(found->second, nullptr, false);
    latpar::detail::require<latpar::io_error>(object.is_object(), file.path(), ": metadata '", name,
                                              "' must be a JSON object, not ", found->second);
    return object;
}

/// `object[key]` as a T. Errors: io_error if it is missing or of another type.
template <class T>
[[nodiscard]] T member(const nlohmann::json& object, const char* key,
                       const latpar::safetensors_file& file) {
    try {
        return object.at(key).get<T>();
    } catch (const nlohmann::json::exception& failure) {
        throw latpar::io_error(latpar::detail::concat(file.path(), ": metadata value '", key,
                                                      "' of ", object.dump(),
                                                      " cannot be read: ", failure.what()));
    }
}

}  // namespace moving_shapes
