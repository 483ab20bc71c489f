// cache/support.h: on which devices a cache can be compressed.

#pragma once

#include <string>

class llama_kv_cache;

// "" if the cache can be compressed where its layers lie, else why not. Backends that do not know our attention node would compute
// it as if there were no prefix, so only those that are known to do right are let in.
std::string headkv_device_reason(const llama_kv_cache & kv);
