// cache/support.h: which caches can be compressed, and the one place that says why not.

#pragma once

#include <string>

class llama_kv_cache;
struct llama_cparams;
struct llama_memory_i;
struct llama_model;

// the cache of the layers that attend to all positions, which may be a part of the model's memory beside sliding windows or recurrent
// states; nullptr where there is none that could be compressed
llama_kv_cache * headkv_attention_cache(llama_memory_i * memory);

// the cache of the layers that attend to a sliding window; nullptr where there are none
llama_kv_cache * headkv_window_cache(llama_memory_i * memory);

// whether that cache of a model beside sliding windows may start small and grow
bool headkv_is_elastic(const llama_model & model);

// "" if a context with this memory and these parameters can be compressed, else why not. Backends that do not know our attention node would compute it as if
// there were no hot rows, so only those that are known to do right are let in
std::string headkv_unsupported_reason(llama_memory_i * memory, const llama_cparams & cparams);
