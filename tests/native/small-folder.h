// small-folder.h: an empty folder of its own, which is gone afterwards.

#pragma once

#include <filesystem>
#include <random>
#include <string>

struct small_folder {
    const std::filesystem::path path = std::filesystem::temp_directory_path()/("headkv-test-" + std::to_string(std::random_device()()));

    small_folder() { std::filesystem::create_directory(path); }
    ~small_folder() { std::filesystem::remove_all(path); }

    small_folder(const small_folder &) = delete;

    std::string name()     const { return path.string(); }
    bool        is_empty() const { return std::filesystem::is_empty(path); }
};
