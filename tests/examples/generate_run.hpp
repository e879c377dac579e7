// SPDX-License-Identifier: Apache-2.0
// latpar-generate as its users run it, for the tests of its files, its report and its end.
#pragma once

#include <latpar/io/safetensors.hpp>

#include <generate/options.hpp>
#include <nlohmann/json.hpp>
#include <signal.h>
#include <support/catch.hpp>
#include <support/reference.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

/// A folder of this test alone, with a text embedding for the tiny model.
struct workplace {
    std::filesystem::path folder =
        std::filesystem::temp_directory_path() / ("latpar_generate_" + std::to_string(getpid()));
    workplace() {
        std::filesystem::create_directories(folder);
        std::vector<float> text(8 * 32);
        for (std::size_t i = 0; i < text.size(); ++i)
            text[i] = 0.01f * static_cast<float>(i % 37) - 0.2f;
        const std::vector<float> none(8 * 32, 0.1f);
        latpar::safetensors_writer writer;
        writer.add<float>("conditional", {8, 32}, text);
        writer.add<float>("unconditional", {8, 32}, none);
        writer.write(folder / "text.safetensors");
    }
    ~workplace() { std::filesystem::remove_all(folder); }

    [[nodiscard]] std::string file(const std::string& name) const {
        return (folder / name).string();
    }
    /// The same job as below, for this process.
    [[nodiscard]] generate::options tiny_options(const std::string& mesh,
                                                 latpar::index_t steps) const {
        generate::options out;
        out.weights = reference_file("wan_tiny.safetensors");
        out.text_embedding = file("text.safetensors");
        out.latent = {16, 6, 8, 12};
        out.steps = steps;
        out.mesh = mesh;
        return out;
    }
    /// Arguments for a small job on the tiny model.
    [[nodiscard]] std::string tiny(const std::string& latent = "16x6x8x12", int steps = 4) const {
        return " --weights " + reference_file("wan_tiny.safetensors").string() +
               " --text-embedding " + file("text.safetensors") + " --latent " + latent +
               " --steps " + std::to_string(steps) + " ";
    }
};

inline std::string content(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream out;
    out << file.rdbuf();
    return std::move(out).str();
}

struct outcome {
    int status;
    std::string text;  ///< standard output and error
};

/// The program: $LATPAR_GENERATE_PROGRAM if set, else that of this build.
inline std::string program() {
    const char* other = std::getenv("LATPAR_GENERATE_PROGRAM");
    return other ? other : LATPAR_GENERATE;
}

inline outcome run(const workplace& at, const std::string& arguments,
                   const std::string& launcher = "") {
    const std::string log = at.file("log");
    const int raw =
        std::system((launcher + program() + ' ' + arguments + " > " + log + " 2>&1").c_str());
    return {WIFEXITED(raw) ? WEXITSTATUS(raw) : -1, content(log)};
}

inline std::vector<float> latent_of(const std::filesystem::path& path) {
    return latpar::to_float32(latpar::safetensors_file::open(path).at("latent"));
}

/// The status of a program that gets an interrupt once its log holds a text.
inline int interrupted(const workplace& at, const std::string& arguments, const std::string& text) {
    const std::string log = at.file("log");
    std::ofstream(log).close();
    const std::string command = "exec " + program() + ' ' + arguments + " > " + log + " 2>&1";
    const pid_t child = fork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", command.c_str(), static_cast<char*>(nullptr));
        _exit(127);
    }
    for (int i = 0; i < 600; ++i) {
        if (content(log).find(text) != std::string::npos) break;
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    kill(child, SIGINT);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    return WEXITSTATUS(status);
}
