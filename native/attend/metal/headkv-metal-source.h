// headkv-metal-source.h: the text of headkv-metal.metal with its header in place, made by embed.cmake.

#pragma once

extern const char * const headkv_metal_source;
