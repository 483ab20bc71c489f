// cache/support.h: which caches can be compressed, and the one place that says why not.

#pragma once

#include <string>

class llama_kv_cache;
struct llama_cparams;
struct llama_memory_i;

// the cache that holds the rows of attention; nullptr where the model's memory has none of its own
llama_kv_cache * headkv_attention_cache(llama_memory_i * memory);

// "" if a context with this memory and these parameters can be compressed, else why not. Backends that do not know our attention node would compute it as if
// there were no hot rows, so only those that are known to do right are let in
std::string headkv_unsupported_reason(llama_memory_i * memory, const llama_cparams & cparams);
